"""The latent files of other projects: bit for bit there and back, and nothing mixed up."""

import io
import json
import zipfile

import numpy as np
import pytest

from diffit.data import open_dataset
from diffit.data.latent_range import KNOWN, pixels_mistaken
from diffit.data.latents import Statistics
from diffit.data.layouts import LAYOUTS, open_latents, recognise
from diffit.data.layouts.convert import refuse_mistaken, write_cache, write_layout
from diffit.errors import DataError
from latent_sets import CODEC, cache, values


def files(place):
    """Relative name -> bytes of every file of a folder or zip."""
    if place.suffix == ".zip":
        with zipfile.ZipFile(place) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in place.rglob("*") if path.is_file()
    }  # fmt: skip


def source_of(layout, folder):
    """A cache whose form is that of the layout."""
    found = LAYOUTS[layout]
    scaled = {"scaled_by": 0.18215} if layout == "fast-dit" else {}
    return cache(
        folder, form=found.form, pixels=found.pixels, classes=("0", "1", "2"),
        mirrored=layout in ("lightningdit", "mar"), **scaled,
    )  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_comes_back_bit_for_bit(layout, tmp_path):
    ours = source_of(layout, tmp_path / "ours")
    written = write_layout(ours, tmp_path / "theirs", layout, scale=LAYOUTS[layout].scale)
    assert (written.images, written.lost) == (10, ())
    assert recognise(tmp_path / "theirs") == layout
    theirs = open_latents(tmp_path / "theirs")
    write_cache(theirs, tmp_path / "again", codec=lambda _: CODEC)
    again = open_latents(tmp_path / "again")
    assert again.facts._replace(classes=()) == ours.facts._replace(classes=())
    # MAR sorts by class, so images are matched by their bytes.
    stored = {ours.storage.stored(i).tobytes(): ours.label(i) for i in range(10)}
    assert stored == {again.storage.stored(i).tobytes(): again.label(i) for i in range(10)}
    write_layout(again, tmp_path / "back", layout, scale=LAYOUTS[layout].scale)
    if layout == "mar":
        write_layout(theirs, tmp_path / "theirs2", layout, scale=1.0)
        assert files(tmp_path / "theirs2") == files(tmp_path / "back")
    else:
        assert files(tmp_path / "theirs") == files(tmp_path / "back")


def test_a_zip_of_edm2_is_read_and_written(tmp_path):
    ours = source_of("edm2", tmp_path / "ours")
    write_layout(ours, tmp_path / "theirs.zip", "edm2", scale=1.0)
    names = list(files(tmp_path / "theirs.zip"))
    assert names[0] == "00000/img-mean-std-00000000.npy"
    assert names[-1] == "dataset.json"
    latents = open_dataset(tmp_path / "theirs.zip")
    assert latents.facts.pixels == "0..1"
    assert np.array_equal(latents[7].image, values(10)[7])
    assert latents[7].label == 1


def test_the_files_are_those_that_the_projects_write(tmp_path):
    """Names, shapes and types, as their own code has them."""
    write_layout(source_of("fast-dit", tmp_path / "a"), tmp_path / "f", "fast-dit", scale=0.18215)
    (features,) = (tmp_path / "f").glob("*_features")
    (labels,) = (tmp_path / "f").glob("*_labels")
    x, y = np.load(features / "3.npy"), np.load(labels / "3.npy")
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((1, 4, 4, 4), np.float32, (1,), np.int64)
    write_layout(source_of("mar", tmp_path / "b"), tmp_path / "m", "mar", scale=1.0)
    first = np.load(sorted((tmp_path / "m").rglob("*.npz"))[0])
    assert sorted(first) == ["moments", "moments_flip"]
    assert first["moments"].shape == (8, 4, 4)
    write_layout(source_of("lightningdit", tmp_path / "c"), tmp_path / "l", "lightningdit", scale=1)
    assert [p.name for p in (tmp_path / "l").iterdir()] == ["latents_rank00_shard000.safetensors"]
    write_layout(source_of("repa", tmp_path / "d"), tmp_path / "r", "repa", scale=1.0)
    index = json.loads((tmp_path / "r" / "vae-sd" / "dataset.json").read_text())
    assert index["labels"][3] == ["00000/img-mean-std-00000003.npy", 0]


def test_other_forms_are_computed_and_said(tmp_path):
    ours = cache(tmp_path / "ours")
    written = write_layout(ours, tmp_path / "mar", "mar", scale=1.0)
    assert "log-variances" in written.lost[0]
    theirs = open_latents(tmp_path / "mar")
    found = sorted(theirs[i].image.sum() for i in range(10))
    assert np.allclose(found, sorted(ours[i].image.sum() for i in range(10)), rtol=1e-5)
    written = write_layout(ours, tmp_path / "fast", "fast-dit", scale=0.18215)
    assert "drawn from each posterior" in written.lost[0]
    assert "no place for the latents of mirrored images" in written.lost[1]
    drawn = np.stack([open_latents(tmp_path / "fast")[i].image for i in range(10)])
    mean, std = np.split(values(10), 2, axis=1)
    z = (drawn - mean) / std
    assert abs(z.mean()) < 0.15
    assert z.std() == pytest.approx(1, abs=0.1)
    point = cache(tmp_path / "point", form="point")
    lost = write_layout(point, tmp_path / "repa", "repa", scale=1.0).lost
    assert "deviations are written as 0" in lost[0]


def test_mirrored_images_of_uvit_are_further_images(tmp_path):
    ours = cache(tmp_path / "ours", form="mean-logvar")
    write_layout(ours, tmp_path / "u", "uvit", scale=1.0)
    theirs = open_latents(tmp_path / "u")
    assert len(theirs) == 20
    assert np.array_equal(theirs.storage.stored(13), ours.storage.stored(3, mirrored=True))
    assert theirs.label(13) == ours.label(3)


def sd_like(pixels, count=40):
    """Latents with the channel statistics of Stable Diffusion's autoencoder on ImageNet."""
    mean, std = (np.array(x, np.float32)[:, None, None] for x in KNOWN[pixels])
    rng = np.random.default_rng(0)
    means = mean + std * rng.standard_normal((count, 4, 4, 4)).astype(np.float32)
    return np.concatenate([means, np.full_like(means, 0.1)], axis=1)


@pytest.mark.parametrize(("made", "named"), [("0..1", "repa"), ("-1..1", "edm2")])
def test_latents_of_edm2_are_not_taken_for_those_of_repa_nor_the_reverse(made, named, tmp_path):
    other = "edm2" if named == "repa" else "repa"
    ours = cache(
        tmp_path / "c", count=40, mirrored=False, pixels=made, numbers=sd_like(made),
        per_shard=40,
    )  # fmt: skip
    write_layout(ours, tmp_path / "out", other, scale=1.0)
    inside = tmp_path / "out" / ("vae-sd" if other == "repa" else "")
    with pytest.raises(DataError, match=r"EDM2 and REPA differ in this, under the same names"):
        refuse_mistaken(open_latents(inside, named), None, way_out="take care")
    refuse_mistaken(open_latents(inside, other), None, way_out="take care")


TAESD = {
    "photographs": {
        "-1..1": ((0.163, -0.045, -0.157, 0.159), (0.794, 0.861, 0.736, 0.646)),
        "0..1": ((0.791, 0.522, -0.101, -0.267), (0.644, 0.673, 0.625, 0.519)),
        "inverted": ((0.123, -0.052, 0.407, -0.268), (0.748, 0.932, 0.730, 0.625)),
    },
    "Tiny-ImageNet": {
        "-1..1": ((-0.194, 0.116, -0.049, 0.013), (0.786, 0.836, 0.735, 0.681)),
        "0..1": ((0.378, 0.626, -0.047, -0.376), (0.665, 0.667, 0.607, 0.530)),
        "inverted": ((-0.132, 0.196, 0.034, -0.384), (0.833, 0.813, 0.676, 0.679)),
    },
}
"""Channel means and deviations of real images through TAESD, whose latents are Stable Diffusion's
times 0.18; `inverted` are negatives in [-1, 1]."""


@pytest.mark.parametrize("images", TAESD)
@pytest.mark.parametrize("made", ["-1..1", "0..1", "inverted"])
def test_real_latents_are_told_apart(images, made):
    mean, std = TAESD[images][made]
    found = Statistics(mean=mean, std=std, low=-5, high=5, overall_mean=0, overall_std=0.75)
    assert pixels_mistaken(found, "-1..1") == (made == "0..1")
    assert pixels_mistaken(found, "0..1") == (made != "0..1")


def test_the_ranges_of_pixels_are_not_mixed_in_writing(tmp_path):
    with pytest.raises(DataError, match=r"repa latents are made of pixels in \[-1, 1\]"):
        write_layout(cache(tmp_path / "c", pixels="0..1"), tmp_path / "x", "repa", scale=1.0)
    assert not (tmp_path / "x").exists()


def test_a_scale_that_is_in_the_numbers_twice_is_noticed(tmp_path):
    latents = cache(tmp_path / "c", numbers=values(10) * 0.5, form="mean-std")
    refuse_mistaken(latents, 1.0, way_out="take care")
    with pytest.raises(DataError, match=r"standard deviation of 0\.18 instead of about 1"):
        refuse_mistaken(latents, 0.18215, way_out="take care")


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def pickled(tmp_path):
    array = np.empty(2, dtype=object)
    array[:] = [np.zeros((8, 4, 4), np.float32), 3]
    np.save(tmp_path / "0.npy", array, allow_pickle=True)


def bomb(tmp_path):
    (tmp_path / "a").mkdir()
    with zipfile.ZipFile(tmp_path / "a" / "0.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("moments.npy", bytes((1 << 26) + 256))
        archive.writestr("moments_flip.npy", b"")


def announced(tmp_path):
    (tmp_path / "0.npy").write_bytes(npy(np.zeros((8, 4, 4), np.float32))[:-4])


def put(name, data):
    def make(tmp_path):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)

    return make


ZEROS = np.zeros((8, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (pickled, "holds Python objects (a pickle), which could run code"),
        (bomb, "unpacks to more than an image's latents"),
        (announced, "announces 512 bytes, but has 508"),
        (put("0.npy", b"text"), "no npy file that can be read"),
        (put("0.npy", npy(ZEROS.astype(np.float64))), "holds float64"),
        (put("0.npy", npy(ZEROS * np.nan)), "not finite"),
        (put("0.npy", npy(np.zeros((7, 4, 4), np.float32))), "a latent here must be 2c x h x w"),
        (put("a/0.npz", b"PK\x03\x04"), "is no npz file, or a damaged one"),
        (put("x_features/0.npy", npy(ZEROS[None])), "holds no latents in a known layout"),
        (put("notes.txt", b"text"), "holds no latents in a known layout"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path, make, answer):
    make(tmp_path)
    with pytest.raises(DataError) as refusal:
        open_latents(tmp_path)[0]
    assert answer in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_missing_pieces_are_named(tmp_path):
    write_layout(source_of("fast-dit", tmp_path / "a"), tmp_path / "f", "fast-dit", scale=1.0)
    next((tmp_path / "f").glob("*_labels/4.npy")).unlink()
    with pytest.raises(DataError, match=r"4.npy is missing, the label of the latent"):
        open_latents(tmp_path / "f")
    write_layout(source_of("edm2", tmp_path / "b"), tmp_path / "e", "edm2", scale=1.0)
    (tmp_path / "e" / "00000" / "img-mean-std-00000010.npy").write_bytes(npy(ZEROS))
    with pytest.raises(DataError, match=r"has no label for 00000/img-mean-std-00000010.npy"):
        open_latents(tmp_path / "e")
    write_layout(source_of("uvit", tmp_path / "c"), tmp_path / "u", "uvit", scale=1.0)
    (tmp_path / "u" / "3.npy").write_bytes(npy(ZEROS[:, :2]))
    with pytest.raises(DataError, match=r"all must be alike"):
        open_latents(tmp_path / "u")[3]


@pytest.mark.parametrize("layout", ["lightningdit", "mar"])
def test_layouts_with_mirrored_latents_need_them(layout, tmp_path):
    with pytest.raises(DataError, match=r"encode with --flip"):
        write_layout(cache(tmp_path / "c", mirrored=False), tmp_path / "x", layout, scale=1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_labels_are_needed_where_a_layout_has_a_place_for_them(tmp_path):
    with pytest.raises(DataError, match=r"needs labels, which"):
        write_layout(cache(tmp_path / "c", classes=()), tmp_path / "x", "fast-dit", scale=1.0)
