"""Fetches over a network that fails in every way."""

import hashlib
import http.server
from pathlib import Path

import numpy as np
import pytest

from diffit.data import remote, transports
from diffit.data.remote import Patience, fetch, is_remote, pauses
from diffit.errors import DataError
from shard_sets import (
    Fault,
    Handler,
    answer_500,
    cut_in_the_middle,
    drop,
    first,
    serving,
    stall,
)

DATA = np.random.default_rng(1).bytes(200_000)
SOON = Patience(retries=3, timeout=0.3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.tar").write_bytes(DATA)
    return tmp_path / "served"


def got(address: str, to: Path, **keywords) -> bytes:
    keywords = {"patience": SOON, "sleep": lambda _: None, **keywords}
    fetch(f"{address}/a.tar", to, **keywords)
    return to.read_bytes()


def test_addresses_are_told_from_paths() -> None:
    assert is_remote("https://host/a.tar")
    assert is_remote("s3://bucket/a.tar")
    assert not is_remote("file:///data/a.tar")
    assert not is_remote("C:\\data\\a.tar")
    assert not is_remote("builtin:digits")


@pytest.mark.parametrize("fault", [drop, answer_500, cut_in_the_middle, stall])
def test_a_fetch_survives_each_fault(folder: Path, tmp_path: Path, fault: Fault) -> None:
    with serving(folder, first(2, fault)) as server:
        assert got(server.address, tmp_path / "to") == DATA
        assert server.asked["/a.tar"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["served", "to"]


def test_a_broken_transfer_is_taken_up_where_it_broke(folder: Path, tmp_path: Path) -> None:
    with serving(folder, first(2, cut_in_the_middle)) as server:
        assert got(server.address, tmp_path / "to") == DATA
        assert server.sent == len(DATA)  # no byte came twice


def test_a_server_without_ranges_is_asked_for_all_of_it_again(folder: Path, tmp_path: Path) -> None:
    with serving(folder, first(2, cut_in_the_middle), ranges=False) as server:
        assert got(server.address, tmp_path / "to") == DATA


def test_attempts_that_bring_something_do_not_count(folder: Path, tmp_path: Path) -> None:
    with serving(folder, first(12, cut_in_the_middle)) as server:
        assert got(server.address, tmp_path / "to") == DATA


def test_a_file_replaced_in_between_comes_from_its_beginning(folder: Path, tmp_path: Path) -> None:
    """The server answers a range of another version with the whole of the new one (RFC 9110)."""
    new = DATA[::-1]

    def half_of_the_old(handler: Handler, data: bytes) -> bool:
        if handler.headers.get("If-Range") is None:
            handler.answer(data, cut=len(data) // 2)
            (folder / "a.tar").write_bytes(new)
            return True
        del handler.headers["Range"]
        return False

    with serving(folder, half_of_the_old) as server:
        assert got(server.address, tmp_path / "to") == new


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(answer_500, "the server answered 500"), (drop, "in 4 attempts"), (stall, "timed out")],
)
def test_a_fetch_that_never_succeeds_says_why(
    folder: Path, tmp_path: Path, fault: Fault, reason: str
) -> None:
    patience = SOON if fault is not stall else Patience(retries=0, timeout=0.2)
    with serving(folder, fault) as server, pytest.raises(DataError, match=reason):
        got(server.address, tmp_path / "to", patience=patience)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["served"]


def test_what_is_not_there_is_not_asked_for_again(folder: Path, tmp_path: Path) -> None:
    with serving(folder) as server:
        with pytest.raises(DataError, match="the server answered 404"):
            fetch(f"{server.address}/b.tar", tmp_path / "to")
        assert server.asked["/b.tar"] == 1


def test_nobody_at_the_address(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?i)refused"):
        fetch("http://127.0.0.1:9/a.tar", tmp_path / "to", patience=SOON, sleep=lambda _: None)


@pytest.mark.parametrize("address", ["http://", "http://[x/a", "https:///a b"])
def test_an_address_that_is_none(address: str, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        fetch(address, tmp_path / "to", patience=Patience(retries=0, timeout=0.2))


def test_size_and_checksum_must_be_as_told(folder: Path, tmp_path: Path) -> None:
    right = hashlib.blake2b(DATA, digest_size=32).hexdigest()
    with serving(folder) as server:
        assert got(server.address, tmp_path / "to", size=200_000, blake2b=right) == DATA
        with pytest.raises(DataError, match="checksum does not match"):
            got(server.address, tmp_path / "to2", blake2b=right[::-1])
        with pytest.raises(DataError, match=r"ended after 200000 of 200001 bytes"):
            got(server.address, tmp_path / "to2", size=200_001)
        with pytest.raises(DataError, match="more than the 1000 bytes"):
            got(server.address, tmp_path / "to2", size=1000)
    assert not (tmp_path / "to2").exists()


def test_more_than_the_disk_holds_is_refused_before_it_comes(folder: Path, tmp_path: Path) -> None:
    def announce(handler: Handler, data: bytes) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 35 if handler.path == "/a.tar" else 1 << 50))
        handler.end_headers()
        return True

    (folder / "b.tar").touch()
    refused = pytest.raises(DataError, match="divide it into shards")
    with serving(folder, announce) as server, refused:
        fetch(f"{server.address}/b.tar", tmp_path / "to", patience=SOON)


def test_a_full_disk_is_told(folder: Path, tmp_path: Path) -> None:
    with serving(folder) as server, pytest.raises(DataError, match="cannot be written"):
        got(server.address, tmp_path / "missing" / "to")


def test_pauses_double_with_jitter_and_follow_from_the_seed() -> None:
    waits = list(pauses(Patience(retries=10), "http://a"))
    means = [min(0.5 * 2**k, 60) for k in range(10)]
    assert all(0.5 * mean < wait < 1.5 * mean for wait, mean in zip(waits, means, strict=True))
    assert waits == list(pauses(Patience(retries=10), "http://a"))
    assert waits != list(pauses(Patience(retries=10), "http://b"))
    assert waits != list(pauses(Patience(retries=10, seed=1), "http://a"))


def test_other_protocols_come_through_fsspec(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe({"/set/a.tar": DATA, "/set/b.tar": b"x"})
    fetch("memory://set/a.tar", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == DATA
    assert remote.size_of("memory://set/a.tar") == 200_000
    assert transports.expand("memory://set/*.tar") == ["memory://set/a.tar", "memory://set/b.tar"]
    with pytest.raises(DataError, match="is not there"):
        fetch("memory://set/c.tar", tmp_path / "to2")


def test_an_unknown_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nonsense"):
        fetch("nonsense://a/b.tar", tmp_path / "to")


def test_s3_without_its_package_names_what_to_install(tmp_path: Path) -> None:
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match="diffit-torch"):
            fetch("s3://bucket/a.tar", tmp_path / "to")
    else:
        pytest.skip("s3fs is installed")


def test_the_test_server_is_one_of_ranges(folder: Path) -> None:
    assert issubclass(Handler, http.server.BaseHTTPRequestHandler)
    with serving(folder) as server:
        opened = transports.open_remote(f"{server.address}/a.tar", 150_000, "", timeout=1)
        assert b"".join(opened.blocks) == DATA[150_000:]
        assert opened.size == 200_000
