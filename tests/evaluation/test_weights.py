"""Weight files: downloads with a checksum from a local server, and files that are none."""

import hashlib
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffit.errors import CheckpointError, UsageError
from diffit.evaluation import weights

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "weights.pth").write_bytes(CONTENT)
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()
    thread.join()


def fetch(url: str, path: Path, *, sha256: str = SHA256, limit: int = len(CONTENT)) -> None:
    weights.fetch(url, path, sha256=sha256, limit=limit)


def test_a_download_arrives_whole_and_makes_its_folder(server, tmp_path):
    path = tmp_path / "cache" / "deep" / "weights.pth"
    fetch(f"{server}/weights.pth", path)
    assert path.read_bytes() == CONTENT
    assert weights.file_sha256(path) == SHA256
    assert [p.name for p in path.parent.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("weights.pth", {"sha256": "0" * 64}, f"has the checksum {SHA256}, not 000"),
        ("weights.pth", {"limit": 1000}, "larger than the expected 1000 bytes"),
        ("absent.pth", {}, "cannot be fetched .*; fetch it elsewhere and name the file"),
    ],
)
def test_a_wrong_download_leaves_nothing(server, tmp_path, file, changes, message):
    folder = tmp_path / "cache"
    with pytest.raises(CheckpointError, match=message):
        fetch(f"{server}/{file}", folder / "weights.pth", **changes)
    assert list(folder.iterdir()) == []


def test_without_a_network_the_message_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="--weights"):
        fetch("http://127.0.0.1:9/weights.pth", tmp_path / "weights.pth")


def test_a_folder_serves_as_well_as_a_server(tmp_path):
    (tmp_path / "local.pth").write_bytes(CONTENT)
    fetch((tmp_path / "local.pth").as_uri(), tmp_path / "copy.pth")
    assert (tmp_path / "copy.pth").read_bytes() == CONTENT


def test_inceptions_weights_are_fetched_once_and_only_when_allowed(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "INCEPTION_SHA256", SHA256)
    url = f"{server}/weights.pth"
    with pytest.raises(UsageError, match="add --download to fetch 91 MiB from http"):
        weights.inception_file(download=False, url=url)
    path = weights.inception_file(download=True, url=url)
    assert path == tmp_path / "cache" / "pt_inception-2015-12-05-6726825d.pth"
    # The second time nothing is fetched: this server is not there.
    assert weights.inception_file(download=True, url="http://127.0.0.1:9/x") == path
    assert weights.inception_file(download=False) == path


def test_the_cache_follows_the_environment(monkeypatch):
    monkeypatch.delenv("DIFFIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert weights.cache_folder() == Path("/somewhere/diffit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights.cache_folder() == Path.home() / ".cache" / "diffit"


def test_the_checksum_agrees_with_the_published_files_name():
    assert weights.INCEPTION_URL.endswith(f"-{weights.INCEPTION_SHA256[:8]}.pth")


def test_tensors_are_read_from_both_kinds_of_file(tmp_path):
    state = {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3)}
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        read, digest = weights.read_weights(tmp_path / name)
        assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert all(torch.equal(read[key], value) for key, value in state.items())


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("hostile-code-ran"),))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Hostile(), protocol=2))
    torch.save({"a": Hostile()}, tmp_path / "worse.pth")
    for name in ("bad.pth", "worse.pth"):
        with pytest.raises(CheckpointError, match="cannot be read as weights"):
            weights.read_weights(tmp_path / name)
    assert not (tmp_path / "hostile-code-ran").exists()


def test_files_that_hold_no_tensors_are_refused(tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "short.safetensors").write_bytes(b"\x10")
    (tmp_path / "empty.pth").touch()
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    for name in ("text.pth", "short.safetensors", "empty.pth"):
        with pytest.raises(CheckpointError, match="cannot be read as weights"):
            weights.read_weights(tmp_path / name)
    with pytest.raises(CheckpointError, match="no table of tensors by name"):
        weights.read_weights(tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        weights.read_weights(tmp_path / "absent.pth")
