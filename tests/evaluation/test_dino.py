"""DINOv2 through transformers, on a tiny network of random weights."""

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from diffit.errors import CheckpointError, UsageError
from diffit.evaluation import open_features
from diffit.evaluation.pixels import for_dino

IMAGES = torch.randint(
    0, 256, (2, 3, 40, 30), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14
    )
    Dinov2Model(config).eval().save_pretrained(place)
    return place


def test_features_are_the_normed_class_token(folder):
    extractor = open_features("dinov2", dino=str(folder))
    network = Dinov2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = network(pixel_values=for_dino(IMAGES)).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(IMAGES).pool, expected, rtol=1e-4, atol=1e-5)
    assert extractor.dims == 32


def test_only_vit_large_is_called_fd_dinov2(folder):
    extractor = open_features("dinov2", dino=str(folder))
    assert extractor.title("fd") == "FD (dinov2-32x2)"
    assert "is not ViT-L/14" in extractor.notes[0]


def test_images_are_resized_and_brought_to_imagenets_mean_and_deviation():
    grey = torch.full((1, 1, 224, 224), 128, dtype=torch.uint8)
    x = for_dino(grey)
    assert x.shape == (1, 3, 224, 224)
    assert x[0, 0, 0, 0].item() == pytest.approx((128 / 255 - 0.485) / 0.229, rel=1e-5)
    assert for_dino(IMAGES).shape == (2, 3, 224, 224)


def test_what_is_no_dino_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_features("dinov2", dino=str(tmp_path))
    with pytest.raises(UsageError, match="are not on this machine; add --download"):
        open_features("dinov2", dino="nobody/has-this")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes()[:300])
    with pytest.raises(CheckpointError, match="cannot be read as DINOv2"):
        open_features("dinov2", dino=str(tmp_path))


def test_a_hub_id_is_found_in_the_folder_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path))
    place = tmp_path / "somebody" / "dino"
    place.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (place / name).write_bytes((folder / name).read_bytes())
    extractor = open_features("dinov2", dino="somebody/dino")
    assert extractor.hash == open_features("dinov2", dino=str(folder)).hash
    with pytest.raises(UsageError, match="no folder and no hub id"):
        open_features("dinov2", dino=str(tmp_path / "gone"))
