"""Training on a CUDA device; skipped where there is none."""

import pytest
import torch
from safetensors.torch import load_file

from diffit.checkpoint import checkpoint_folder
from diffit.training.journal import read_metrics
from diffit.training.loop import train
from tiny import tiny_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_on_the_gpu_follows_the_one_on_the_cpu(tmp_path, precision):
    config = tiny_run(precision=precision)
    losses = {}
    for device in ("cpu", "cuda"):
        train(config, tmp_path / device, device=device, quiet=True)
        losses[device] = [
            line["loss"] for line in read_metrics(tmp_path / device / "metrics.jsonl")
        ]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3 if precision == "fp32" else 0.05)


def test_a_run_resumes_on_the_other_device(tmp_path):
    train(tiny_run(images=64), tmp_path / "run", device="cuda", quiet=True)
    train(tiny_run(images=128), tmp_path / "run", device="cpu", resume=True, quiet=True)
    train(tiny_run(images=192), tmp_path / "run", device="cuda", resume=True, quiet=True)
    folder = checkpoint_folder(tmp_path / "run", 192)
    for tensor in load_file(folder / "model.safetensors").values():
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("option", ["compile", "activation_checkpointing", "tf32"])
def test_options_for_large_models_work(tmp_path, option):
    outcome = train(tiny_run(**{option: True}), tmp_path / "run", device="cuda", quiet=True)
    assert outcome.images == 128
