"""Claims: one holder at a time, none left over by the dead."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffit import claims
from diffit.claims import claim, turn
from diffit.errors import DataError

HOLD = """
import sys, time
from pathlib import Path
from diffit.claims import claim
with claim(Path(sys.argv[1])) as holder:
    print(holder, flush=True)
    time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ours\n"
    return process


def test_a_claim_has_one_holder_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    with claim(path) as first, claim(path) as second:
        assert (first, second) == ("ours", "busy")
    assert not path.exists()
    with claim(path) as third:
        assert third == "ours"


def test_the_claim_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    process = hold(tmp_path / "claim")
    with claim(tmp_path / "claim") as holder:
        assert holder == "busy"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "claim").exists()
    with claim(tmp_path / "claim") as holder:
        assert holder == "ours"


def test_the_claim_of_another_machine_is_known_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    path.write_text("another machine")
    with claim(path) as holder:
        assert holder == "elsewhere"
    assert path.read_text() == "another machine"


def test_what_is_left_half_done_keeps_its_claim(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claim(tmp_path / "claim"):
        raise KeyboardInterrupt
    assert (tmp_path / "claim").exists()


def test_turns_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = hold(tmp_path / "claim")
    waited = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        process.kill()
        process.wait()

    monkeypatch.setattr(time, "sleep", pause)
    with pytest.raises(RuntimeError), turn(tmp_path / "claim"):
        raise RuntimeError
    assert waited == [claims.PAUSE]
    assert not (tmp_path / "claim").exists()


def test_where_no_file_can_be_made_the_answer_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="cannot be written: No such file"),
        claim(tmp_path / "nowhere" / "claim"),
    ):
        pass


def test_without_locks_every_claim_is_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "fcntl", None)
    with claim(tmp_path / "claim") as first, claim(tmp_path / "claim") as second:
        assert (first, second) == ("ours", "ours")


def test_a_file_system_without_locks_grants_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(claims.fcntl, "flock", flock)
    with claim(tmp_path / "claim") as holder:
        assert holder == "ours"
