"""Reference statistics: round trips through the layouts, and files that are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffit.data import Arrays, open_dataset
from diffit.errors import DataError, UsageError
from diffit.evaluation import open_features
from diffit.evaluation.moments import Moments
from diffit.evaluation.protocols import (
    Statistics,
    check_fits,
    has_examples,
    is_statistics,
    read_statistics,
    write_statistics,
)


def gaussian(dims: int, seed: int = 0):
    moments = Moments(dims)
    moments.update(torch.randn(3 * dims, dims, generator=torch.Generator().manual_seed(seed)))
    return moments.gaussian()


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
KNOWN = Statistics(
    pool=gaussian(8),
    spatial=gaussian(5),
    count=24,
    features="inception",
    features_hash="ab" * 32,
    protocol="adm",
)


@pytest.mark.parametrize("layout", ["adm", "pytorch-fid", "edm"])
def test_a_round_trip_keeps_every_bit(layout, tmp_path):
    path = tmp_path / "stats.npz"
    write_statistics(path, KNOWN, layout, images=Arrays(IMAGES, None))
    assert is_statistics(path)
    found = read_statistics(path)
    assert torch.equal(found.pool.mean, KNOWN.pool.mean)
    assert torch.equal(found.pool.covariance, KNOWN.pool.covariance)
    assert (found.layout, found.count, found.features, found.protocol) == (
        layout, 24, "inception", "adm",
    )  # fmt: skip
    assert found.features_hash == KNOWN.features_hash
    assert (found.spatial is not None) == (layout == "adm") == has_examples(path)
    assert [p.name for p in tmp_path.iterdir()] == ["stats.npz"]


def test_numpy_sees_adms_entries_and_its_images(tmp_path):
    path = tmp_path / "stats.npz"
    write_statistics(path, KNOWN, "adm", images=Arrays(IMAGES, None))
    with np.load(path, allow_pickle=False) as table:
        assert set(table) == {"mu", "sigma", "mu_s", "sigma_s", "arr_0", "diffit"}
        assert table["mu"].dtype == table["sigma"].dtype == np.float64
        assert table["sigma_s"].shape == (5, 5)
        assert np.array_equal(table["arr_0"], IMAGES)
        assert json.loads(str(table["diffit"]))["count"] == 24
    assert np.array_equal(open_dataset(path)[3].image, IMAGES[3].transpose(2, 0, 1))


def test_grey_examples_are_repeated_and_no_more_than_ten_thousand_are_copied(tmp_path, monkeypatch):
    monkeypatch.setattr("diffit.evaluation.protocols.MAX_EXAMPLES", 4)
    path = tmp_path / "stats.npz"
    write_statistics(path, KNOWN, "adm", images=Arrays(IMAGES[..., :1], None))
    with np.load(path) as table:
        assert np.array_equal(table["arr_0"], np.repeat(IMAGES[::3, ..., :1], 3, axis=3))


def test_files_of_other_programs_are_read_and_known_for_what_they_are(tmp_path):
    mean, covariance = KNOWN.pool.mean.numpy(), KNOWN.pool.covariance.numpy()
    np.savez(tmp_path / "fid.npz", mu=mean, sigma=covariance)
    np.savez_compressed(
        tmp_path / "adm.npz", mu=mean.astype(np.float32), sigma=covariance.astype(np.float32),
        mu_s=KNOWN.spatial.mean.numpy(), sigma_s=KNOWN.spatial.covariance.numpy(), arr_0=IMAGES,
    )  # fmt: skip
    plain, adm = read_statistics(tmp_path / "fid.npz"), read_statistics(tmp_path / "adm.npz")
    assert (plain.layout, plain.protocol, plain.features, plain.count) == ("", "", "", None)
    assert (adm.layout, adm.protocol) == ("adm", "adm")
    torch.testing.assert_close(adm.pool.covariance, plain.pool.covariance, atol=1e-6, rtol=1e-6)
    np.savez(tmp_path / "images.npz", arr_0=IMAGES)
    assert not is_statistics(tmp_path / "images.npz")


def test_the_adm_layout_needs_spatial_statistics(tmp_path):
    with pytest.raises(ValueError, match="needs spatial statistics and example images"):
        write_statistics(tmp_path / "x.npz", replace(KNOWN, spatial=None), "adm")


EYE, ZERO = np.eye(4), np.zeros(4)
BAD = {
    "no sigma": ({"mu": ZERO}, "holds mu; statistics are named mu and sigma"),
    "other names": ({"mean": ZERO, "cov": EYE}, "holds cov, mean; statistics are named"),
    "shapes": ({"mu": ZERO, "sigma": np.eye(5)}, "are 4 and 5 x 5; they must be D and D x D"),
    "rank": ({"mu": EYE, "sigma": EYE}, "are 4 x 4 and 4 x 4; they must be D and D x D"),
    "scalar": ({"mu": np.float64(0), "sigma": EYE}, "are a single number and 4 x 4"),
    "nan": ({"mu": ZERO, "sigma": EYE * np.nan}, "not finite; make them again"),
    "inf": ({"mu": ZERO + np.inf, "sigma": EYE}, "not finite; make them again"),
    "asymmetric": ({"mu": ZERO, "sigma": np.triu(np.ones((4, 4)))}, "sigma is not symmetric"),
    "negative": ({"mu": ZERO, "sigma": -EYE}, "sigma has negative variances"),
    "text": ({"mu": np.array(list("abcd")), "sigma": EYE}, "hold <U1 and float64, not numbers"),
    "spatial": (
        {"mu": ZERO, "sigma": EYE, "mu_s": ZERO, "sigma_s": np.eye(3)},
        "mu_s and sigma_s are 4 and 3 x 3",
    ),
    "own entry": (
        {"mu": ZERO, "sigma": EYE, "diffit": np.array("[1")},
        "its entry 'diffit' is damaged",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_wrong_statistics_are_refused_in_one_sentence(kind, tmp_path):
    arrays, message = BAD[kind]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        read_statistics(tmp_path / "bad.npz")
    assert "\n" not in str(caught.value)


def test_pickles_damaged_and_hostile_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="is a pickle, which can run code when read"):
        read_statistics(tmp_path / "edm2.pkl")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(DataError, match="no npz file, or a damaged one"):
        read_statistics(tmp_path / "text.npz")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_statistics(tmp_path / "absent.npz")
    np.savez(tmp_path / "objects.npz", mu=np.array([print], dtype=object), sigma=EYE)
    with pytest.raises(DataError, match="cannot be read as statistics"):
        read_statistics(tmp_path / "objects.npz")
    monkeypatch.setattr("diffit.evaluation.protocols.MAX_DIMS", 3)
    np.savez(tmp_path / "large.npz", mu=ZERO, sigma=EYE)
    with pytest.raises(DataError, match="statistics have at most 3 dimensions"):
        read_statistics(tmp_path / "large.npz")


def test_statistics_of_other_features_are_refused():
    digits = open_features("digits-cnn")
    fitting = Statistics(
        pool=gaussian(64), features="digits-cnn", features_hash=digits.hash, protocol="area"
    )
    check_fits(fitting, digits)
    check_fits(Statistics(pool=gaussian(64)), digits)
    with pytest.raises(UsageError, match="statistics of 8 dimensions, digits-cnn gives 64"):
        check_fits(replace(KNOWN, features=""), digits)
    with pytest.raises(UsageError, match="statistics of inception, not of digits-cnn"):
        check_fits(KNOWN, digits)
    with pytest.raises(UsageError, match="made with other weights of digits-cnn"):
        check_fits(replace(fitting, features_hash="00" * 32), digits)
    with pytest.raises(UsageError, match="made with the adm resizing; add --protocol adm"):
        check_fits(replace(fitting, protocol="adm"), digits)
