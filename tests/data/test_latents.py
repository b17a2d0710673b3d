"""Caches of latents: what is read is what was written; damage is named."""

import json
import pickle

import numpy as np
import pytest

from diffit.data import LatentSet, open_dataset, open_images
from diffit.data.latent_range import Running
from diffit.data.latent_writer import verify
from diffit.data.latents import INDEX
from diffit.data.loader import Loader
from diffit.errors import DataError
from latent_sets import cache, values


def test_a_cache_gives_back_every_number_and_label(tmp_path):
    cache(tmp_path / "c")
    latents = open_dataset(tmp_path / "c")
    assert isinstance(latents, LatentSet)
    assert (latents.shape, latents.example_shape, len(latents)) == ((4, 4, 4), (8, 4, 4), 10)
    assert latents.codec["scale"] == 0.5
    plain, flipped = values(10), values(10, seed=1)
    for i in (0, 3, 4, 9):
        assert np.array_equal(latents[i].image, plain[i])
        assert np.array_equal(latents[10 + i].image, flipped[i])
        assert latents[i].label == latents.label(i) == latents[10 + i].label == i % 2
    assert list(verify(latents)) == ["", "", ""]


def test_log_variances_become_deviations(tmp_path):
    latents = cache(tmp_path / "c", form="mean-logvar")
    stored = values(10, form="mean-logvar")[3]
    assert np.array_equal(latents[3].image[:4], stored[:4])
    assert np.allclose(latents[3].image[4:], np.exp(stored[4:] / 2), rtol=1e-6)


def test_a_scale_in_the_numbers_is_taken_out(tmp_path):
    latents = cache(tmp_path / "c", form="point", scaled_by=0.18215, mirrored=False)
    assert latents.example_shape == (4, 4, 4)
    assert np.allclose(latents[3].image * 0.18215, values(10, form="point")[3], rtol=1e-6)


def test_statistics_are_those_of_drawn_latents():
    rng = np.random.default_rng(0)
    mean = 3 + 2 * rng.standard_normal((4000, 2, 4, 4))
    std = np.full_like(mean, 1.5)
    running = Running(2)
    running.add(np.concatenate([mean, std], axis=1)[:1000])
    running.add(np.concatenate([mean, std], axis=1)[1000:])
    found = running.result()
    assert found.mean == pytest.approx((3, 3), abs=0.05)
    assert found.std == pytest.approx((2.5, 2.5), abs=0.02)  # sqrt(2^2 + 1.5^2)
    assert found.overall_std == pytest.approx(2.5, abs=0.02)
    assert (found.low, found.high) == (mean.min(), mean.max())


def test_labels_can_be_left_out(tmp_path):
    cache(tmp_path / "c")
    latents = open_dataset(tmp_path / "c", labels=False)
    assert latents.classes == ()
    assert latents[0].label is None


def test_a_set_can_be_sent_to_another_process(tmp_path):
    latents = cache(tmp_path / "c")
    before = latents[5].image
    assert np.array_equal(pickle.loads(pickle.dumps(latents))[5].image, before)  # noqa: S301


@pytest.mark.parametrize(("workers", "memory"), [(0, 0), (0, 1 << 20), (2, 0)])
def test_batches_do_not_depend_on_memory_or_workers(tmp_path, memory, workers):
    latents = cache(tmp_path / "c", dtype="float16")
    with Loader(latents, batch=7, seed=3, flip=True, memory=memory, workers=workers) as loader:
        batches = [next(loader) for _ in range(4)]
    flipped, plain = values(10, seed=1).astype("float16"), values(10).astype("float16")
    seen = set()
    for batch in batches:
        for image, number in zip(batch.image.numpy(), batch.number.tolist(), strict=True):
            i = loader.index(number)
            mirrored = np.array_equal(image, flipped[i])
            assert mirrored or np.array_equal(image, plain[i])
            seen.add(mirrored)
    assert seen == {True, False}


def test_without_flip_no_mirrored_latent_is_read(tmp_path):
    latents = cache(tmp_path / "c")
    batch = next(Loader(latents, batch=10, seed=0))
    assert {image.numpy().tobytes() for image in batch.image} == {
        image.tobytes() for image in values(10)
    }


def damage(folder, name, change):
    content = json.loads((folder / INDEX).read_text())
    change(content)
    (folder / INDEX).write_text(json.dumps(content))


def changed(**new):
    return lambda folder: damage(folder, INDEX, lambda content: content.update(new))


def truncate(folder):
    path = folder / "latents-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def garble(folder):
    path = folder / "latents-00000.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize(
    ("harm", "answer"),
    [
        (changed(format="diffit-latents-9"), "has format 'diffit-latents-9'"),
        (changed(count=11), "count is 11, but the shards hold another number"),
        (changed(shape=[0, 4, 4]), "must be 1 to 4096 each"),
        (changed(form="other"), "is damaged (form"),
        (changed(surprise=1), "is damaged (surprise"),
        (changed(dtype="float16"), "does not hold [8, 4, 4] of float16"),
        (changed(shape=[4, 4, 5]), "does not hold [8, 4, 5] of float32"),
        (changed(classes=["a"]), "not an integer from 0 to 0"),
        (lambda f: (f / INDEX).write_text("{"), "is no valid JSON"),
        (lambda f: (f / INDEX).write_text("[1]"), "is damaged"),
        (lambda f: (f / "latents-00001.safetensors").unlink(), "is missing"),
        (truncate, "bytes instead of"),
        (garble, "is damaged"),
    ],
)
def test_damage_is_named(tmp_path, harm, answer):
    cache(tmp_path / "c")
    harm(tmp_path / "c")
    with pytest.raises(DataError) as refusal:
        open_dataset(tmp_path / "c")[0]
    assert answer in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_changed_number_shows_in_the_checksum(tmp_path):
    latents = cache(tmp_path / "c")
    path = tmp_path / "c" / "latents-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert [bool(sentence) for sentence in verify(latents)] == [False, False, True]


def test_latents_are_refused_where_images_are_needed(tmp_path):
    cache(tmp_path / "c")
    with pytest.raises(DataError, match="holds latents, and images are needed"):
        open_images(tmp_path / "c")
    with pytest.raises(DataError, match=r"leave data\.size out"):
        open_dataset(tmp_path / "c", size=8)
