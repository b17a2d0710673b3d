"""Copies of checkpoints in another place."""

import fsspec
import pytest

from diffit.errors import ConfigError
from diffit.training import upload
from diffit.training.upload import Uploads, open_target


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoints" / "000000000012"
    folder.mkdir(parents=True)
    for name in ("state.json", "config.yaml", "model.safetensors"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(upload, "FIRST_PAUSE", 0.001)


def test_a_copy_has_all_files_and_its_state_last(tmp_path, checkpoint, monkeypatch):
    order, said = [], []
    uploads = Uploads(f"file://{tmp_path}/copy", said.append)
    put = uploads._system.put_file
    monkeypatch.setattr(
        uploads._system, "put_file", lambda a, b: (order.append(b.rpartition("/")[2]), put(a, b))
    )
    uploads.send(checkpoint)
    uploads.close()

    assert order == ["config.yaml", "model.safetensors", "state.json"]
    copy = tmp_path / "copy" / "checkpoints" / checkpoint.name
    assert {file.name: file.read_text() for file in copy.iterdir()} == {n: n for n in order}
    assert said == [f"sending 1 checkpoints to file://{tmp_path}/copy ..."]


def test_a_storage_that_fails_for_a_while_is_tried_again(checkpoint, monkeypatch):
    memory, said = fsspec.filesystem("memory"), []
    uploads = Uploads("memory://runs/faces", said.append)
    put, failures = (
        memory.put_file,
        iter([ConnectionError("reset"), TimeoutError(), OSError(5, "I/O")]),
    )

    def flaky(*args):
        if (error := next(failures, None)) is not None:
            raise error
        put(*args)

    monkeypatch.setattr(uploads._system, "put_file", flaky)
    uploads.send(checkpoint)
    uploads.close()

    assert len(memory.ls(f"/runs/faces/checkpoints/{checkpoint.name}")) == 3
    assert len(said) == 1


def test_a_storage_that_keeps_failing_is_told_and_does_not_end_the_run(checkpoint, monkeypatch):
    said = []
    uploads = Uploads("memory://runs/faces", said.append)
    monkeypatch.setattr(uploads._system, "put_file", broken)
    uploads.send(checkpoint)
    uploads.close()

    assert said[-1] == "checkpoint 000000000012 was not sent to memory://runs/faces: quota exceeded"


def broken(*_):
    raise RuntimeError("quota\nexceeded")


@pytest.mark.parametrize("target", ["nowhere://x", "file:///dev/null/x"])
def test_a_target_that_cannot_be_opened_is_refused(target):
    with pytest.raises(ConfigError, match=r"train\.upload .* cannot be opened"):
        open_target(target)
