"""Classifiers of transformers give here the logits and the attention that they give there."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffit.errors import CheckpointError, UsageError
from diffit.explain.attribution import METHODS, token_maps
from diffit.explain.classifier import is_attentive
from diffit.explain.transformers_folder import fetch_transformers, is_transformers
from diffit.explain.transformers_model import EagerModel, wrap_model
from diffit.explain.transformers_vit import open_transformers
from diffit.explain.vit import ViT
from diffit.fetch import parse_id

transformers = pytest.importorskip("transformers")

NAMES = ["cat", "dog", "owl", "fox", "bee"]
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8, "id2label": dict(enumerate(NAMES)),
}  # fmt: skip
WIDE = {**SHAPE, "intermediate_size": 48}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2],
        "window_size": 4, "id2label": dict(enumerate(NAMES))}  # fmt: skip
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]

MODELS = {
    "vit": ("ViTForImageClassification", "ViTConfig", {**WIDE, "qkv_bias": False}, 1),
    "deit": ("DeiTForImageClassification", "DeiTConfig", WIDE, 2),
    "deit-teacher": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", WIDE, 2),
    "vit-relu": ("ViTForImageClassification", "ViTConfig", {**WIDE, "hidden_act": "relu"}, 1),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", SHAPE, 1),
    "dinov2-registers": ("Dinov2WithRegistersForImageClassification",
                         "Dinov2WithRegistersConfig", SHAPE, 5),
    "swin": ("SwinForImageClassification", "SwinConfig", SWIN, None),
}  # fmt: skip
OURS = ("vit", "deit", "deit-teacher")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder for each model, as its library writes it, with lively random weights."""
    parent = tmp_path_factory.mktemp("transformers")
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    for name, (kind, config, settings, _) in MODELS.items():
        model = getattr(transformers, kind)(getattr(transformers, config)(**settings))
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(std=0.2)
        model.save_pretrained(parent / name)
        write_preprocessor(parent / name)
    return parent


def write_preprocessor(folder: Path, **changed) -> None:
    told = {
        "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "image_mean": MEAN,
        "image_std": STD, "size": {"height": 32, "width": 32}, **changed,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(told))


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def theirs(folder: Path, images: torch.Tensor):
    kinds = transformers.AutoModelForImageClassification
    model = kinds.from_pretrained(folder, attn_implementation="eager").eval()
    pixels = ((images + 1) / 2 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    with torch.no_grad():
        return model(pixels, output_attentions=True)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_attention_are_those_of_the_library(folders, images, name):
    classifier = open_transformers(folders / name)
    expected = theirs(folders / name, images)
    assert expected.logits.std() > 0.1
    torch.testing.assert_close(classifier(images), expected.logits, rtol=1e-5, atol=1e-5)
    assert classifier.class_names == tuple(NAMES)
    assert classifier.shape == (3, 32, 32)
    assert isinstance(classifier, ViT) == (name in OURS)
    prefix = MODELS[name][3]
    assert is_attentive(classifier) == (prefix is not None)
    if is_attentive(classifier):
        assert (classifier.grid, classifier.prefix) == ((4, 4), prefix)
        trace = classifier.traced(images)
        torch.testing.assert_close(trace.logits, expected.logits, rtol=1e-5, atol=1e-5)
        for ours, other in zip(trace.attentions, expected.attentions, strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_every_method_explains_it_or_says_why_not(folders, images, name):
    classifier = open_transformers(folders / name, name=name)
    for method, row in METHODS.items():
        lacks = "LRP" in row.needs and name not in OURS
        if lacks or ("attention" in row.needs and name == "swin"):
            with pytest.raises(UsageError, match=name):
                token_maps(method, classifier, images, torch.tensor([0, 1]))
        else:
            maps = token_maps(method, classifier, images, torch.tensor([0, 1]), grid=(4, 4))
            assert maps.shape == (2, 16), method
            found = row.run(classifier, images, torch.tensor([0, 1]))
            assert found.abs().sum() > 0 or method == "gradcam", method


def test_a_model_with_fused_attention_predicts_and_says_why_it_shows_none(folders, images):
    kinds = transformers.AutoModelForImageClassification
    model = kinds.from_pretrained(folders / "dinov2", attn_implementation="sdpa").eval()
    classifier = wrap_model(model, size=(32, 32), mean=MEAN, std=STD)
    expected = theirs(folders / "dinov2", images).logits
    torch.testing.assert_close(classifier(images), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match='attn_implementation="eager"'):
        token_maps("rollout", classifier, images, torch.tensor([0, 1]))


def test_dinov2_looks_at_the_size_of_its_crop(folders, tmp_path, images):
    folder = copy(folders / "dinov2", tmp_path)
    write_preprocessor(
        folder,
        size={"shortest_edge": 56},
        do_center_crop=True,
        crop_size={"height": 48, "width": 40},
    )
    classifier = open_transformers(folder)
    assert isinstance(classifier, EagerModel)
    assert (classifier.shape, classifier.grid) == ((3, 48, 40), (6, 5))
    assert token_maps("rollout", classifier, images, torch.tensor([0, 1])).shape == (2, 30)


def copy(folder: Path, parent: Path) -> Path:
    new = parent / "copy"
    new.mkdir()
    for file in folder.iterdir():
        (new / file.name).write_bytes(file.read_bytes())
    return new


def edit(folder: Path, file: str, **changed) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **changed}))


def spoil_weights(folder: Path, key: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(key, None)
    if tensor is not None:
        tensors[key] = tensor
    save_file(tensors, folder / "model.safetensors")


def test_class_names_that_are_not_those_of_the_classes_are_numbers(folders, tmp_path):
    folder = copy(folders / "vit", tmp_path)
    edit(folder, "config.json", id2label={"0": "cat"})
    assert open_transformers(folder).class_names == ("0", "1", "2", "3", "4")


WEIGHTS, QUERY = "model.safetensors", "vit.encoder.layer.0.attention.attention.query.weight"
BROKEN = {
    "no preprocessor_config.json": lambda f: (f / "preprocessor_config.json").unlink(),
    "cannot be read as JSON": lambda f: (f / "config.json").write_text('{"model_type": '),
    "describes no model of transformers": lambda f: (f / "config.json").write_text("{}"),
    "has no model.safetensors": lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
    "is damaged": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100]),
    "does not bring images to": lambda f: write_preprocessor(f, do_rescale=False),
    "no image_mean": lambda f: write_preprocessor(f, image_std=[0.5, 0, 0.5]),
    "gives no size": lambda f: write_preprocessor(f, size={"longest_edge": 9}),
    "mean has 2 numbers": lambda f: write_preprocessor(f, image_mean=[0.5, 0.5]),
    "must be a multiple of heads": lambda f: edit(f, "config.json", num_attention_heads=5),
    "norm_eps": lambda f: edit(f, "config.json", layer_norm_eps="tiny"),
    "features and no classes": lambda f: (
        spoil_weights(f, "classifier.weight", None) or spoil_weights(f, "classifier.bias", None)
    ),
    "has a tensor 'vit.extra'": lambda f: spoil_weights(f, "vit.extra", torch.zeros(1)),
    "has no tensor 'blocks.0.attn.query.weight'|wants": lambda f: spoil_weights(f, QUERY, None),
    "make no square": lambda f: spoil_weights(
        f, "vit.embeddings.position_embeddings", torch.zeros(1, 13, 32)
    ),
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_a_folder_that_is_not_whole_is_refused_in_a_sentence(folders, tmp_path, sentence):
    folder = copy(folders / "vit", tmp_path)
    assert is_transformers(folder)
    BROKEN[sentence](folder)
    with pytest.raises(CheckpointError, match=sentence):
        open_transformers(folder)


def test_an_adapted_model_that_is_not_whole_is_refused_in_a_sentence(folders, tmp_path):
    folder = copy(folders / "swin", tmp_path)
    edit(folder, "config.json", model_type="bert")
    with pytest.raises(CheckpointError, match="cannot be read as an image classifier"):
        open_transformers(folder)
    edit(folder, "config.json", model_type="swin")
    write_preprocessor(folder, size=[3, 3], image_mean=[0.5], image_std=[0.5])
    (folder / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read as an image classifier"):
        open_transformers(folder)


def test_a_repository_is_found_in_the_cache(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = parse_id("owner/tiny-vit")
    with pytest.raises(CheckpointError, match="is not in the cache of this machine"):
        fetch_transformers(source)
    (tmp_path / "owner").mkdir()
    copy(folders / "vit", tmp_path / "owner").rename(tmp_path / "owner" / "tiny-vit")
    assert open_transformers(fetch_transformers(source), name=str(source)).name == "owner/tiny-vit"


def test_a_missing_library_is_named(folders, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert isinstance(open_transformers(folders / "vit"), ViT)  # needs no code but ours
    with pytest.raises(UsageError, match=r"pip install 'diffit-torch\[classifiers\]'"):
        open_transformers(folders / "dinov2")
