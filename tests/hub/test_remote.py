"""Hub ids: what is one, where its files come from, and what is said if they do not."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import diffit
from convert.files import recorded
from convert.files import write as convert_write
from diffit import fetch
from diffit.checkpoint import recommended
from diffit.cli import main
from diffit.errors import CheckpointError
from diffit.fetch import HubId, parse_id
from diffit.hub import Card, find, pull, push, read_folder
from tiny_hub import CONFIG, SAMPLING, same, write


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "digits"
    write(folder, shard_bytes=20_000)
    return folder


@pytest.fixture
def stocked(hub, written):
    hub.add("me/digits", written)
    return hub


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("me/digits", HubId("me/digits")),
        ("me/digits@v1", HubId("me/digits", "v1")),
        ("me/digits:a/b.safetensors", HubId("me/digits", None, "a/b.safetensors")),
        ("me/digits@pr/1:b.safetensors", HubId("me/digits", "pr/1", "b.safetensors")),
        ("digits", None),
        ("./me/digits", None),
        ("/me/digits", None),
        ("me/digits/", None),
        (Path("me/digits"), HubId("me/digits")),
        ("runs/digits/checkpoints/1", None),
        ("../digits", None),
        ("me/", None),
        ("", None),
        ("C:/digits", None),
        ("me/digits@", None),
        ("me/digits:", None),
    ],
)
def test_what_is_an_id(text, expected):
    assert parse_id(text) == expected
    if expected is not None:
        assert parse_id(str(expected)) == expected


def test_what_exists_here_or_could_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    assert parse_id("me/digits") is None
    with pytest.raises(CheckpointError, match="me/digits does not exist; name a checkpoint or the"):
        diffit.load("me/digits")


def test_an_id_loads_like_its_folder(stocked, written):
    model = diffit.load("me/digits")
    assert same(model.network, diffit.load(written).network)
    assert model.config == CONFIG
    assert model.sampling == SAMPLING


def test_a_revision_is_the_state_it_names(stocked, written, tmp_path):
    write(tmp_path / "new", card=Card(title="second"))
    stocked.add("me/digits", tmp_path / "new")
    assert read_folder(find("me/digits")).card.title == "second"
    assert read_folder(find("me/digits@v1")).card.title == ""
    assert find(f"me/digits@{stocked.commit('me/digits', 0)}") == find("me/digits@v1")
    with pytest.raises(CheckpointError, match="me/digits has no revision 'v9'"):
        find("me/digits@v9")


def test_what_was_fetched_once_needs_no_connection(stocked, monkeypatch):
    first = find("me/digits")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    stocked.requests.clear()
    assert find("me/digits") == first
    assert stocked.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert find("me/digits") == first


def test_without_a_connection_and_a_cache_the_ways_out_are_named(hub_cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    answer = (
        r"no folder me/digits here, config\.json of a repository .* \(HF_HUB_OFFLINE is set\); "
        "fetch it elsewhere with `diffit hub pull me/digits OUT` and put it at "
    )
    with pytest.raises(CheckpointError, match=answer):
        find("me/digits")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    answer = r"the hub cannot be asked .*; fetch it elsewhere and put it at .*digits/x\.safetensors"
    with pytest.raises(CheckpointError, match=answer):
        find("me/digits:x.safetensors")


def test_the_folder_cache_comes_first_and_needs_no_hub(hub_cache, written, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = tmp_path / "folder-cache" / "me" / "digits"
    shutil.copytree(written, place)
    assert find("me/digits") == place
    assert find("me/digits:config.json") == place / "config.json"
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        find("me/digits@v1")


def test_an_interrupted_download_goes_on(stocked, monkeypatch):
    get = fetch.Repository.get

    def cut(self, file):
        if file != "config.json" and not file.startswith("model-00001"):
            raise KeyboardInterrupt
        return get(self, file)

    monkeypatch.setattr(fetch.Repository, "get", cut)
    with pytest.raises(KeyboardInterrupt):
        find("me/digits")
    monkeypatch.setattr(fetch.Repository, "get", get)
    stocked.requests.clear()
    diffit.load("me/digits")
    assert not any("GET" in r and "model-00001" in r for r in stocked.requests)


def test_a_damaged_cache_is_found(stocked):
    shard = min(find("me/digits").glob("*.safetensors")).resolve()
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"checksum of model-00001.* does not match; remove"):
        diffit.load("me/digits")
    with pytest.raises(CheckpointError, match="its checksum is not that of me/digits; remove"):
        find(f"me/digits:{min(read_folder(find('me/digits')).files)}")


def test_a_single_file_comes_with_its_configuration(hub, tmp_path):
    (tmp_path / "x" / "transformer").mkdir(parents=True)
    (tmp_path / "x" / "transformer" / "w.safetensors").write_bytes(b"weights")
    (tmp_path / "x" / "transformer" / "config.json").write_text("{}")
    hub.add("you/dit", tmp_path / "x")
    path = find("you/dit:transformer/w.safetensors")
    assert path.read_bytes() == b"weights"
    assert (path.parent / "config.json").read_text() == "{}"


def test_published_weights_load_by_file_and_by_id(hub, tmp_path):
    _, state, _ = recorded("diffit")
    (tmp_path / "x").mkdir()
    file = convert_write(tmp_path / "x" / "w.safetensors", state)
    hub.add("you/diffit", tmp_path / "x")
    with pytest.warns(UserWarning, match="w.safetensors: cc-by-nc-sa-4.0: for non-commercial use"):
        local = diffit.load(file)
    with pytest.warns(UserWarning, match="for non-commercial use"):
        model = diffit.load("you/diffit:w.safetensors", dtype=torch.bfloat16)
    assert model.denoiser.dtype == torch.bfloat16
    assert Path(model.provenance["checkpoint"]).name == "w.safetensors"
    assert recommended("you/diffit:w.safetensors") == model.sampling
    for name, tensor in local.network.state_dict().items():
        assert torch.equal(tensor.bfloat16(), model.network.state_dict()[name])


def test_published_weights_convert_by_id(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, state, _ = recorded("diffit")
    (tmp_path / "x").mkdir()
    convert_write(tmp_path / "x" / "w.safetensors", state)
    hub.add("you/diffit", tmp_path / "x")
    assert main(["convert", "you/diffit:w.safetensors", "--out", "out", "--no-certify"]) == 0
    card = read_folder(tmp_path / "out").card
    assert card.licence == "cc-by-nc-sa-4.0"


def test_only_files_that_cannot_run_code_are_fetched(hub, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "w.pt").write_bytes(b"weights")
    hub.add("you/dit", tmp_path / "x")
    hub.requests.clear()
    with pytest.raises(CheckpointError, match=r"w\.pt: only \.safetensors and \.json are fetched"):
        find("you/dit:w.pt")
    assert not any("w.pt" in request for request in hub.requests)


def test_repositories_that_are_missing_gated_or_of_others_are_refused(hub, tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder you/none here and no http"):
        find("you/none")
    with pytest.raises(CheckpointError, match=r"you/no\.\.ne names no repository: "):
        find("you/no..ne")
    hub.gated.add("you/gated")
    with pytest.raises(CheckpointError, match="you/gated asks for its conditions to be accepted"):
        find("you/gated")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "w.safetensors").write_bytes(b"weights")
    hub.add("you/foreign", tmp_path / "x")
    answer = r"holds no model that diffit wrote; name one .* you/foreign:FILE \(w\.safetensors\)"
    with pytest.raises(CheckpointError, match=answer):
        find("you/foreign")
    with pytest.raises(CheckpointError, match=r"has no file 'v\.safetensors'; it has w\.safet"):
        find("you/foreign:v.safetensors")
    (tmp_path / "x" / "config.json").write_text(json.dumps({"_class_name": "Other"}))
    hub.add("you/foreign", tmp_path / "x")
    with pytest.raises(CheckpointError, match="holds no model that diffit wrote"):
        find("you/foreign")


def test_a_disk_without_room_is_told_before_anything_is_fetched(stocked, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"takes 0\.0 GB, but .* has 0\.0 GB left; make room"):
        find("me/digits")
    assert not any("safetensors" in request for request in stocked.requests)


def test_much_data_is_announced(stocked, monkeypatch):
    monkeypatch.setattr(fetch, "WORTH_A_NOTE", 1000)
    with pytest.warns(UserWarning, match=r"fetching 0\.\d GB of me/digits into "):
        find("me/digits")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find("me/digits")


def test_a_pushed_folder_is_pulled_again_byte_for_byte(hub, written, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    address = push(written, "me/new", private=True)
    assert address.startswith(f"{hub.address}/me/new/commit/")
    content = pull(HubId("me/new"), tmp_path / "out")
    assert content == read_folder(written)
    assert {p.name: p.read_bytes() for p in written.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()
    }
    with pytest.raises(CheckpointError, match="out exists already; name a new folder"):
        pull(HubId("me/new"), tmp_path / "out")


def test_a_push_takes_away_the_weights_of_before_alone(hub, written, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    push(written, "me/digits")
    hub.repos["me/digits"][-1]["examples.png"] = b"x"
    write(tmp_path / "new")
    push(tmp_path / "new", "me/digits")
    assert sorted(hub.repos["me/digits"][-1]) == [
        "README.md", "config.json", "examples.png", "model.safetensors",
    ]  # fmt: skip


def test_only_what_belongs_to_the_model_is_pushed(hub, written, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    folder = Path(shutil.copytree(written, tmp_path / "x"))
    (folder / "notes.txt").write_text("secret")
    push(folder, "me/digits")
    assert "notes.txt" not in hub.repos["me/digits"][-1]


def test_a_push_that_cannot_be_is_refused(hub, written, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="me/x could not be pushed: log in with `hf auth"):
        push(written, "me/x")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(CheckpointError, match="with a token that may write there"):
        push(written, "me/x")
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    with pytest.raises(CheckpointError, match="'me/ x' names no repository"):
        push(written, "me/ x")
    with pytest.raises(CheckpointError, match=r"nowhere/config\.json does not exist; name a hub"):
        push(tmp_path / "nowhere", "me/x")
    folder = Path(shutil.copytree(written, tmp_path / "x"))
    min(folder.glob("*.safetensors")).write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged"):
        push(folder, "me/x")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        push(written, "me/x")
    assert hub.repos == {}
