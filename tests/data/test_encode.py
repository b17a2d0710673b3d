"""Encoding: the same bytes whatever interrupts it and however many processes share it."""

import functools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from diffit.data import encode as encoding
from diffit.data import encode_parts, open_dataset
from diffit.data.encode import encode
from diffit.data.latents import open_cache
from diffit.errors import DataError
from latent_sets import CODEC, image_folder


class Halves:
    """Means are the 2 x 2 averages of the pixels / 100, deviations their tenth."""

    def __init__(self, posterior=True, fail=None):
        self.posterior, self.fail = posterior, fail

    def moments(self, images):
        mean = torch.nn.functional.avg_pool2d(images.float(), 2) / 100
        if self.fail is not None:
            mean[(images == self.fail).all(3).all(2).all(1)] = float("nan")
        return torch.cat([mean, mean / 10 if self.posterior else 0 * mean], dim=1)

    def to_model(self, latents):
        return latents

    def decode(self, x):
        return (x * 100).round().repeat_interleave(2, 2).repeat_interleave(2, 3).byte()


def run(dataset, out, *, posterior=True, make=None, **options):
    settings = {"plan": {"codec": "x"}, "codec": lambda _: CODEC, **options}
    return encode(
        dataset, out, make=make or functools.partial(Halves, posterior), posterior=posterior,
        channels=3, factor=2, finished=lambda _: Halves(), **settings,
    )  # fmt: skip


@pytest.fixture
def images(tmp_path):
    return open_dataset(image_folder(tmp_path / "images", each=50))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_latents_are_those_of_the_images_and_their_mirror_images(images, tmp_path):
    encoded = run(images, tmp_path / "c", mirrored=True, dtype="float32")
    latents = encoded.latents
    assert (len(latents), latents.shape, latents.classes) == (100, (3, 8, 8), images.classes)
    for i in (0, 31, 32, 99):
        for place, pixels in ((i, images[i].image), (100 + i, images[i].image[..., ::-1])):
            wanted = Halves().moments(torch.from_numpy(pixels.copy())[None])[0].numpy()
            assert np.array_equal(latents[place].image, wanted)
        assert latents.label(i) == images.label(i)
    assert (tmp_path / "c" / "check.png").is_file()
    assert not (tmp_path / "c.partial").exists()


def test_the_psnr_is_that_of_the_decoded_images(images, tmp_path):
    psnr = run(images, tmp_path / "c", dtype="float32").psnr
    errors = []
    for k in range(8):
        pixels = images[k * 100 // 8].image.astype(float)
        mean = pixels.reshape(3, 8, 2, 8, 2).mean((2, 4)).repeat(2, 1).repeat(2, 2).round()
        errors.append(10 * np.log10(255**2 / np.square(pixels - mean).mean()))
    assert psnr == pytest.approx(np.mean(errors), abs=0.02)


def test_without_a_posterior_the_latents_alone_are_stored(images, tmp_path):
    latents = run(images, tmp_path / "c", posterior=False).latents
    assert latents.facts.form == "point"
    assert latents[0].image.shape == (3, 8, 8)
    assert latents[0].image.dtype == np.float16


def test_several_processes_write_the_same_bytes(images, tmp_path):
    run(images, tmp_path / "one", mirrored=True)
    run(images, tmp_path / "two", mirrored=True, processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_an_interrupted_call_goes_on_where_it_stopped(images, tmp_path, monkeypatch):
    run(images, tmp_path / "straight")
    monkeypatch.setattr(encoding, "PER_SHARD", 64)
    made = []
    original = encode_parts.encode_part

    def part(job, encoder, number):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(number)
        original(job, encoder, number)

    monkeypatch.setattr(encode_parts, "encode_part", part)
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path / "c")
    assert made == [0, 1]
    assert not (tmp_path / "c").exists()
    monkeypatch.setattr(
        encode_parts, "encode_part", lambda *args: (made.append(args[2]), original(*args))
    )
    run(images, tmp_path / "c")
    assert made == [0, 1, 2, 3]
    straight, resumed = open_cache(tmp_path / "straight"), open_cache(tmp_path / "c")
    assert all(np.array_equal(straight[i].image, resumed[i].image) for i in range(100))


KILLED = """
import sys, time, functools
sys.path[:0] = {paths!r}
import torch
from data.test_encode import Halves, run
from diffit.data import open_dataset

class Slow(Halves):
    def moments(self, images):
        time.sleep(0.15)
        return super().moments(images)

if __name__ == "__main__":
    run(open_dataset({images!r}), __import__("pathlib").Path({out!r}), make=Slow)
"""


def test_a_killed_process_loses_nothing(images, tmp_path):
    process = start(tmp_path / "images", tmp_path / "c")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "c.partial").glob("part-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "c").exists()
    run(images, tmp_path / "c")
    run(images, tmp_path / "straight")
    assert contents(tmp_path / "c") == contents(tmp_path / "straight")


def start(images, out):
    from pathlib import Path

    tests = Path(__file__).parent.parent
    paths = [str(tests), str(tests.parent / "src")]
    script = KILLED.format(paths=paths, images=str(images), out=str(out))
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)


def test_commands_for_one_output_share_its_parts(images, tmp_path):
    """Two at once, of which one is killed."""
    commands = [start(tmp_path / "images", tmp_path / "c") for _ in range(2)]
    deadline = time.monotonic() + 60
    while not list((tmp_path / "c.partial").glob("part-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(commands[0].pid, signal.SIGKILL)
    commands[0].wait()
    assert commands[1].wait(60) == 0, commands[1].stderr.read().decode()
    run(images, tmp_path / "straight")
    assert contents(tmp_path / "c") == contents(tmp_path / "straight")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "images", "straight"]


def test_a_part_that_another_machine_has_claimed_is_encoded_at_last(images, tmp_path, monkeypatch):
    run(images, tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "encode_parts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(images, tmp_path / "c")
    (tmp_path / "c.partial" / "part-000001.claim").write_bytes(b"a machine that is no more")
    made = []
    original = encode_parts.encode_part
    monkeypatch.setattr(
        encode_parts, "encode_part", lambda *args: (made.append(args[2]), original(*args))
    )
    run(images, tmp_path / "c")
    assert made == [0, 2, 3, 1]
    assert contents(tmp_path / "c") == contents(tmp_path / "straight")


def test_shards_give_the_latents_of_their_images(images, tmp_path):
    from diffit.data.pack_shards import pack_shards

    pack_shards(str(tmp_path / "images"), tmp_path / "shards", shuffle=False)
    run(images, tmp_path / "a")
    run(open_dataset(tmp_path / "shards"), tmp_path / "b", processes=2)
    a, b = open_cache(tmp_path / "a"), open_cache(tmp_path / "b")
    assert all(np.array_equal(a[i].image, b[i].image) for i in range(100))
    assert [a.label(i) for i in range(100)] == [b.label(i) for i in range(100)]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_latent_that_is_not_finite_names_its_image(tmp_path, processes):
    folder = image_folder(tmp_path / "images", each=40)
    from diffit.data.images import write_png

    write_png(folder / "class-1" / "7.png", np.full((3, 16, 16), 9, np.uint8))
    with pytest.raises(DataError, match=r"the latent of class-1/7.png is not finite"):
        run(
            open_dataset(folder), tmp_path / "c", make=functools.partial(Halves, True, 9),
            processes=processes,
        )  # fmt: skip


def test_a_value_beyond_float16_is_refused(images, tmp_path):
    class Huge(Halves):
        def moments(self, images):
            return 1e6 + super().moments(images)

    with pytest.raises(DataError, match=r"--dtype float32"):
        run(images, tmp_path / "c", make=Huge)
    run(images, tmp_path / "d", make=Huge, dtype="float32")


def test_mistakes_are_refused_before_anything_is_computed(images, tmp_path):
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match=r"exists already"):
        run(images, tmp_path / "c")
    with pytest.raises(DataError, match=r"there is no folder"):
        run(images, tmp_path / "no" / "c")
    odd = open_dataset(image_folder(tmp_path / "odd", side=15))
    with pytest.raises(DataError, match=r"takes multiples of 2, so set --size 14"):
        run(odd, tmp_path / "d")


def test_another_plan_is_refused(images, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path / "c")
    with pytest.raises(DataError, match=r"was begun with another codec \(x, now y\)"):
        run(images, tmp_path / "c", plan={"codec": "y"})
    with pytest.raises(DataError, match=r"was begun with another mirrored"):
        run(images, tmp_path / "c", mirrored=True)


def test_a_damaged_part_is_removed_and_made_again(images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "_merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(images, tmp_path / "c")
    (tmp_path / "c.partial" / "part-000001.safetensors").write_bytes(b"half")
    with pytest.raises(DataError, match=r"was damaged and has been removed"):
        run(images, tmp_path / "c")
    assert len(run(images, tmp_path / "c").latents) == 100
