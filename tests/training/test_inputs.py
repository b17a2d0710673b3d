"""What a training image sees follows from (seed, number) alone."""

import pytest
import torch

from diffit.data.loader import Batch
from diffit.model import ModelConfig, build_model
from diffit.networks.mdt import MDTConfig
from diffit.training.inputs import Ahead, draw_inputs
from tiny import tiny_run

MODEL = build_model(tiny_run().model)
IMAGES = torch.randint(0, 256, (400, 1, 8, 8), dtype=torch.uint8)


def inputs(first, count, **options):
    number = torch.arange(first, first + count)
    batch = Batch(IMAGES[first : first + count], number % 10, number)
    return draw_inputs(batch, MODEL, **{"seed": 3, "label_dropout": 0.3, **options})


def test_draws_do_not_depend_on_the_batch():
    whole, parts = inputs(0, 40, augmentation=0.5), []
    for first, count in ((0, 7), (7, 1), (8, 32)):
        parts.append(inputs(first, count, augmentation=0.5))
    assert whole.seen is whole.image is None
    for name in set(whole._fields) - {"seen", "image"}:
        joined = torch.cat([getattr(part, name) for part in parts])
        if name in ("clean", "augment"):  # the warp multiplies matrices of the batch
            assert torch.allclose(getattr(whole, name), joined, atol=1e-5)
        else:
            assert torch.equal(getattr(whole, name), joined), name


def test_what_masked_training_shows_does_not_depend_on_the_batch():
    network = {"name": "mdt", "size": 8, "channels": 1, "classes": 10, "patch": 1}
    network |= {"decoder": 1, "width": 8, "heads": 1, "depth": 3}
    model = build_model(ModelConfig(network=MDTConfig(**network)))

    def seen(first, count):
        number = torch.arange(first, first + count)
        batch = Batch(IMAGES[first : first + count], number % 10, number)
        return draw_inputs(batch, model, seed=3).seen

    whole = seen(0, 400)
    assert torch.equal(whole[7:20], torch.cat([seen(7, 1), seen(8, 12)]))
    shown = whole.double().mean(1)
    assert shown.min() >= 0.5 - 1 / 64
    assert shown.max() <= 0.7
    assert shown.mean().item() == pytest.approx(0.6 - 0.5 / 64, abs=0.01)
    # Every patch is shown equally often.
    assert whole.double().mean(0).std() < 1.5 * (0.6 * 0.4 / 400) ** 0.5


def test_another_seed_draws_otherwise():
    ours, theirs = inputs(0, 8), inputs(0, 8, seed=4)
    for name in ("noise", "sigma", "keys"):
        assert not torch.equal(getattr(ours, name), getattr(theirs, name))


def test_labels_are_dropped_at_the_rate_that_was_asked_for():
    kept = inputs(0, 400)
    dropped = kept.label == MODEL.classes
    assert dropped.double().mean().item() == pytest.approx(0.3, abs=0.07)
    assert torch.equal(kept.label[~dropped], kept.number[~dropped] % 10)
    assert not (inputs(0, 400, label_dropout=0.0).label == MODEL.classes).any()
    assert (inputs(0, 50, label_dropout=1.0).label == MODEL.classes).all()


def test_the_levels_follow_the_training_law():
    drawn = inputs(0, 400)
    assert drawn.sigma.dtype == torch.float64
    assert drawn.sigma.log().mean().item() == pytest.approx(-1.2, abs=0.2)
    assert drawn.sigma.log().std().item() == pytest.approx(1.2, abs=0.15)
    assert torch.equal(drawn.sigma, MODEL.formulation.training_sigma(drawn.position))


def test_clean_images_are_the_encoded_ones():
    drawn = inputs(10, 5)
    assert torch.equal(drawn.clean, IMAGES[10:15].float() / 127.5 - 1)
    assert drawn.augment is None


def test_a_model_without_classes_gets_no_label():
    model = build_model(tiny_run(network={"classes": 0}).model)
    batch = Batch(IMAGES[:2], torch.tensor([1, 2]), torch.tensor([0, 1]))
    assert draw_inputs(batch, model, seed=0, label_dropout=0.5).label is None


def test_a_part_is_a_slice():
    whole = inputs(0, 9)
    part = whole.part(6, 5)
    assert part.number.tolist() == [6, 7, 8]
    assert part.augment is None
    assert torch.equal(part.noise, whole.noise[6:])


def test_items_made_ahead_come_in_order():
    ahead = Ahead(iter(range(100)), depth=3)
    assert [next(ahead) for _ in range(50)] == list(range(50))
    ahead.close()


def test_a_failure_ahead_reaches_the_one_who_waits():
    def items():
        yield 1
        raise OSError("gone")

    ahead = Ahead(items())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="gone"):
        next(ahead)
    ahead.close()
