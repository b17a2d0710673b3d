"""Extractors: names, protocols, what is refused."""

import pytest
import torch
from safetensors.torch import save_file

from diffit.errors import CheckpointError, UsageError
from diffit.evaluation.features import NAMES, UNVERIFIED, open_features
from diffit.evaluation.inception import Inception
from diffit.evaluation.pixels import PROTOCOLS
from diffit.fetch import file_sha256


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_file(Inception().state_dict(), folder / "whole.safetensors")
    torch.manual_seed(0)
    save_file(Inception(partial=True).state_dict(), folder / "partial.safetensors")
    return folder


IMAGES = torch.randint(
    0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)


def test_only_inceptions_2048_features_are_called_fid(files):
    titles = {}
    for name in NAMES:
        if name == "dinov2":
            continue  # needs weights of its own
        file = files / "whole.safetensors" if name.startswith("inception") else None
        extractor = open_features(name, weights_file=file)
        titles[name] = extractor.title("fd"), extractor.title("kid"), extractor.title("recall")
    assert titles == {
        "inception": ("FID", "KID", "recall"),
        "inception-64": ("FD-64", "KID (inception-64)", "recall (inception-64)"),
        "inception-192": ("FD-192", "KID (inception-192)", "recall (inception-192)"),
        "inception-768": ("FD-768", "KID (inception-768)", "recall (inception-768)"),
        "inception-mixed_7a": (
            "FD-mixed_7a-1280", "KID (inception-mixed_7a)", "recall (inception-mixed_7a)",
        ),
        "digits-cnn": ("FD (digits-cnn)", "KID (digits-cnn)", "recall (digits-cnn)"),
        "patches-cnn": ("FD (patches-cnn)", "KID (patches-cnn)", "recall (patches-cnn)"),
    }  # fmt: skip


def test_inception_gives_features_logits_and_positions_and_says_what_is_unverified(files):
    extractor = open_features("inception", weights_file=files / "whole.safetensors")
    found = extractor(IMAGES)
    assert found.pool.shape == (2, 2048)
    assert found.pool.dtype == torch.float32
    assert found.logits.shape == (2, 1008)
    assert found.spatial.shape == (2, extractor.spatial_dims) == (2, 2023)
    assert extractor.notes == (UNVERIFIED,) == ("last blocks unverified",)
    assert extractor.hash == file_sha256(files / "whole.safetensors")


def test_a_partial_file_serves_early_layers_and_is_refused_for_fid(files):
    file = files / "partial.safetensors"
    extractor = open_features("inception-768", weights_file=file)
    found = extractor(IMAGES[:1])
    assert found.pool.shape == (1, 768)
    assert found.logits is None
    assert "not comparable to FID" in extractor.notes[0]
    with pytest.raises(UsageError, match="ends at Mixed_7a and gives no 2048 features"):
        open_features("inception", weights_file=file)


def test_protocols_differ_in_resizing_and_scaling():
    black, white = torch.zeros(1, 3, 8, 8).byte(), torch.full((1, 3, 8, 8), 255).byte()
    fid, adm = PROTOCOLS["pytorch-fid"], PROTOCOLS["adm"]
    assert fid(IMAGES).shape == adm(IMAGES).shape == (2, 3, 299, 299)
    for protocol, high in ((fid, 1), (adm, 127 / 128)):
        low_end = torch.full((1, 3, 299, 299), -1.0)
        torch.testing.assert_close(protocol(black), low_end)
        torch.testing.assert_close(protocol(white), -low_end * high)
    torch.testing.assert_close(PROTOCOLS["edm"](IMAGES), adm(IMAGES))
    assert float((adm(IMAGES) - fid(IMAGES)).abs().max()) > 0.3


def test_an_image_of_299_is_not_resized_and_grey_is_repeated():
    image = torch.randint(0, 256, (1, 1, 299, 299), dtype=torch.uint8)
    x = PROTOCOLS["pytorch-fid"](image)
    torch.testing.assert_close(x[:, 0], image[:, 0] / 127.5 - 1)
    assert torch.equal(x[:, 0], x[:, 2])


def test_features_of_an_image_do_not_depend_on_its_batch():
    extractor = open_features("patches-cnn")
    together = extractor(IMAGES).pool
    alone = torch.cat([extractor(image[None]).pool for image in IMAGES])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_images_of_another_kind_are_refused():
    extractor = open_features("digits-cnn")
    for images in (IMAGES.float(), IMAGES[0], IMAGES[:, :2]):
        with pytest.raises(ValueError, match=r"not uint8 \(B, 1 or 3, H, W\)"):
            extractor(images)


def test_unknown_names_and_missing_weights_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="'digit-cnn' is unknown; did you mean 'digits-cnn'"):
        open_features("digit-cnn")
    with pytest.raises(UsageError, match="--protocol 'tidy' is unknown"):
        open_features("inception", protocol="tidy")
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="the Inception weights are not on this machine"):
        open_features("inception")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_features("inception", weights_file=tmp_path / "no.pth")
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit Inception-v3 of 2015 .*; take https"):
        open_features("inception", weights_file=tmp_path / "other.safetensors")
