"""Hub-style folders: written whole, verified when read, and the same model again."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import diffit
from diffit import sealed
from diffit.checkpoint import recommended
from diffit.errors import CheckpointError
from diffit.hub import Card, is_hub_folder, read_folder, write_folder
from diffit.model import build_model
from diffit.networks import NETWORKS
from tiny_hub import CONFIG, SAMPLING, same, write

PASSPORT = {
    "figures": [
        {"name": "FID", "protocol": "adm", "value": 12.3456, "samples": 5000,
         "interval": {"low": 11.9, "high": 12.8, "level": 0.95, "method": "bootstrap"}},
        {"name": "IS", "value": 9.1, "samples": 5000, "interval": None},
    ],
    "reference": {"path": "cifar10.npz"},
    "generation": {"sampling": {"sampler": "heun", "steps": 18, "guidance": 1.5}},
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "digits"
    write(folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "digits"))


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 20_000])
def test_a_written_model_comes_back_bit_for_bit(tmp_path, shard_bytes):
    network = write(tmp_path / "x", shard_bytes=shard_bytes)
    model = diffit.load(tmp_path / "x")
    assert same(network, model.network)
    assert model.config == CONFIG
    assert model.sampling == recommended(tmp_path / "x") == SAMPLING
    assert not any(p.requires_grad or p.is_meta for p in model.network.parameters())


def test_small_weights_are_one_file_and_large_ones_several_with_an_index(written, tmp_path):
    names = sorted(path.name for path in written.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    network = write(tmp_path / "x", shard_bytes=20_000)
    shards = sorted(path.name for path in (tmp_path / "x").glob("*.safetensors"))
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert len(shards) > 2
    index = json.loads((tmp_path / "x" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == network.state_dict().keys()
    for shard in shards:
        tensors = load_file(tmp_path / "x" / shard)
        assert all(index["weight_map"][key] == shard for key in tensors)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        assert size <= 20_000 or len(tensors) == 1


def test_weights_stored_in_half_precision_load_in_float32_or_as_asked(tmp_path):
    network = build_model(CONFIG, seed=1).network
    half = {key: tensor.bfloat16() for key, tensor in network.state_dict().items()}
    write_folder(tmp_path / "x", config=CONFIG, sampling=SAMPLING, tensors=half, card=Card())
    loaded = diffit.load(tmp_path / "x").network.state_dict()
    assert all(t.dtype == torch.float32 and torch.equal(t, half[k]) for k, t in loaded.items())
    model = diffit.load(tmp_path / "x", dtype=torch.bfloat16)
    assert model.denoiser.dtype == torch.bfloat16


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_all_their_tables_in_the_state_dict(name):
    """Weights are put into networks that were built without memory: a table would be lost."""
    kind, network = NETWORKS[name]
    with torch.device("meta"):
        built = network(kind())
    assert {n for n, _ in built.named_buffers()} <= built.state_dict().keys()


def test_a_folder_is_replaced_by_a_newer_one_of_its_kind_alone(folder, tmp_path):
    write(folder, card=Card(title="newer"))
    assert read_folder(folder).card.title == "newer"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("x")
    with pytest.raises(CheckpointError, match="photos exists and is no hub-style folder; name a"):
        write(tmp_path / "photos")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_a_full_disk_leaves_the_old_folder(folder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealed.os, "fsync", full)
    with pytest.raises(CheckpointError, match="could not be written: No space left on device"):
        write(folder, card=Card(title="newer"))
    monkeypatch.undo()
    assert read_folder(folder).card.title == ""
    assert [p.name for p in folder.parent.iterdir()] == ["digits"]


def test_tensors_of_another_network_are_not_written(tmp_path):
    with pytest.raises(CheckpointError, match="the table of tensors lacks tensor"):
        write_folder(tmp_path / "x", config=CONFIG, sampling=SAMPLING, tensors={}, card=Card())
    assert not (tmp_path / "x").exists()


def test_a_flipped_bit_a_lost_end_and_a_lost_file_are_found(folder):
    path = folder / "model.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"checksum of model\.safetensors does not match"):
        diffit.load(folder)
    path.write_bytes(good[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors has \d+ bytes instead of \d+"):
        diffit.load(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing; fetch the rest too"):
        diffit.load(folder)


def test_other_weights_with_a_right_checksum_are_refused(folder, tmp_path):
    wide = CONFIG.model_copy(
        update={"network": CONFIG.network.model_copy(update={"widths": (32, 32)})}
    )
    edit(folder, model=wide.model_dump(mode="json"))
    with pytest.raises(CheckpointError, match=r"has shape .* but its configuration wants"):
        diffit.load(folder)


def test_weights_that_are_no_safetensors_are_damage(folder):
    (folder / "model.safetensors").write_bytes(b"{" * 100)
    content = json.loads((folder / "config.json").read_text())
    content["files"]["model.safetensors"] = {
        "bytes": 100, "sha256": hashlib.sha256(b"{" * 100).hexdigest(),
    }  # fmt: skip
    edit(folder, files=content["files"])
    with pytest.raises(CheckpointError, match=r"is damaged: model\.safetensors: "):
        diffit.load(folder)


def test_a_tensor_in_two_files_is_damage(folder):
    shutil.copy(folder / "model.safetensors", folder / "model-2.safetensors")
    files = json.loads((folder / "config.json").read_text())["files"]
    edit(folder, files=files | {"model-2.safetensors": files["model.safetensors"]})
    with pytest.raises(CheckpointError, match=r"is damaged: tensor '.*' is in two files"):
        diffit.load(folder)


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"format": 2}, "has format 2, but this version of diffit reads format 1; use the version"),
        ({"model": {}}, "setting 'model.network' is missing"),
        ({"colour": 1}, "unknown setting 'colour'"),
        ({"files": {"../secret.safetensors": {"bytes": 1, "sha256": ""}}}, "is no file of weights"),
        ({"files": {"run.py": {"bytes": 1, "sha256": ""}}}, "'run.py', which is no file of weigh"),
        ({"files": {"model.safetensors": {"bytes": -1, "sha256": ""}}}, "bytes is -1; it must be"),
        ({"files": {}}, "lacks tensor"),
        ({"card": {"passports": [{"figures": [{}]}]}}, "passports.0 is no record of a measuremen"),
        ({"card": {"passports": [{"figures": 3}]}}, "passports.0 is no record of a measurement"),
        ({"card": {"licence": 3}}, "card.licence is 3; it must be a valid string"),
    ],
)
def test_a_wrong_configuration_is_refused_in_a_sentence(folder, changes, answer):
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=answer):
        diffit.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 100_000])
def test_a_configuration_that_is_no_json_object_makes_no_hub_folder(folder, text):
    (folder / "config.json").write_text(text)
    assert not is_hub_folder(folder)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_folder(folder)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        diffit.load(folder)


def test_only_the_named_weights_exist(folder):
    assert diffit.load(folder, weights="model").provenance["weights"] == "model"
    with pytest.raises(CheckpointError, match=r"has no weights 'ema-0\.9'; there are: model"):
        diffit.load(folder, weights="ema-0.9")


def front_matter(folder):
    text = (folder / "README.md").read_text()
    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front)


def test_the_card_says_licence_labels_sampling_and_measurements(tmp_path):
    card = Card(
        title="Digits", licence="cc-by-nc-4.0", licence_url="https://example.org/nc",
        source="a run", provenance={"images": 128}, certificate={"largest difference": 1e-7},
        passports=(PASSPORT,),
    )  # fmt: skip
    write(tmp_path / "digits", card=card, name="me/digits")
    text = (tmp_path / "digits" / "README.md").read_text()
    assert front_matter(tmp_path / "digits") == {
        "license": "cc-by-nc-4.0", "library_name": "diffit",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffit", "diffusion", "vision-transformer", "class-conditional"],
    }  # fmt: skip
    for part in (
        "# Digits\n",
        "[cc-by-nc-4.0](https://example.org/nc): **for non-commercial use only**.",
        "diffit sample me/digits --out samples",
        "| `guidance` | 1.5 |",
        "0 kind 0, 1 kind 1",
        "| FID (adm) | 12.35 | 11.9 to 12.8 | 5,000 | cifar10.npz | heun in 18 steps, guidance 1.5",
        "| IS | 9.1 |  | 5,000 |",
        "| largest difference | 1e-07 |",
        "| images | 128 |",
    ):
        assert part in text


def test_a_licence_that_the_hub_does_not_know_is_other(tmp_path):
    write(tmp_path / "x", card=Card(licence="nvidia-nc", licence_note="Research only."))
    front = front_matter(tmp_path / "x")
    assert (front["license"], front["license_name"]) == ("other", "nvidia-nc")
    assert "nvidia-nc: **Research only**." in (tmp_path / "x" / "README.md").read_text()


def test_a_card_without_a_licence_says_so(written):
    assert "license" not in front_matter(written)
    assert "No licence was named." in (written / "README.md").read_text()


@pytest.mark.parametrize(
    ("licence", "restriction"),
    [
        ("cc-by-nc-4.0", "for non-commercial use only"),
        ("CC-BY-NC-ND-4.0", "for non-commercial use only; may not be passed on changed"),
        ("apache-2.0", ""),
        ("", ""),
    ],
)
def test_what_a_licence_restricts_follows_from_its_name(licence, restriction):
    assert Card(licence=licence).restriction == restriction


def test_classes_without_names_are_numbers(tmp_path):
    for names in ((), tuple(map(str, range(10)))):
        write(tmp_path / "x", config=CONFIG.model_copy(update={"class_names": names}))
        assert "## Labels\n\n0 to 9.\n" in (tmp_path / "x" / "README.md").read_text()


def test_names_of_classes_cannot_break_the_card(tmp_path):
    names = ("a|b", "---\nlicense: mit", *(f"{i}" for i in range(8)))
    write(tmp_path / "x", config=CONFIG.model_copy(update={"class_names": names}),
          card=Card(source="a | b\n# c"))  # fmt: skip
    assert "license" not in front_matter(tmp_path / "x")
    text = (tmp_path / "x" / "README.md").read_text()
    assert "1 --- license: mit" in text
    assert "a \\| b # c" in text
