"""Loading a model holds its weights once: each leaves the mapped file when it has been copied."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffit.checkpoint import save_model
from diffit.config import Settings
from diffit.diffusion.formulation import DDPMConfig
from diffit.hub import Card, write_folder
from diffit.model import ModelConfig, empty_model
from diffit.networks.large_dit import LargeDiTConfig
from diffit.nn.packed import TernaryPackedConfig
from diffit.sampling import SamplingConfig

WIDE = LargeDiTConfig(size=8, width=1024, depth=6, heads=16, modulation_norm=True)
"""113 million weights in its blocks."""

MEASURE = """
import json, sys
from pathlib import Path
import diffit, diffit.checkpoint, diffit.networks

def now(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1e3

models, extra = [diffit.load(sys.argv[1])], []  # the first one brings what any load imports
for folder in sys.argv[2:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew from here
    before = now("VmRSS")
    models.append(diffit.load(folder))
    extra.append(now("VmHWM") - before)
assert "sympy" not in sys.modules  # 80 MB that PyTorch imports to make up weights without memory
print(json.dumps(extra))
"""


class Run(Settings):
    """Settings of a run, as far as a checkpoint needs them."""

    model: ModelConfig


def weights(config):
    """Whatever fits: matrices of zeros, which cost no time to make."""
    tensors = empty_model(config).network.state_dict()
    return {
        name: torch.full(t.shape, 0b01010101 if t.dtype == torch.uint8 else 0.5, dtype=t.dtype)
        for name, t in tensors.items()
    }


def config_of(**linear):
    formulation = DDPMConfig(learned_variance=False)
    return ModelConfig(network=WIDE, formulation=formulation, linear=TernaryPackedConfig(**linear))


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="counts memory as Linux does"
)
def test_a_packed_model_is_in_memory_once_while_it_is_loaded(tmp_path):
    config = config_of()
    hub, run, base3 = (tmp_path / name for name in ("hub", "run", "base3"))
    shared = {"sampling": SamplingConfig(), "card": Card()}
    write_folder(hub, config=config, tensors=weights(config), **shared)
    save_model(run, Run(model=config), {"model": weights(config)}, {"images": 0})
    dense = config_of(storage="base-3")
    codes = {n: t.zero_() if n.endswith("codes") else t for n, t in weights(dense).items()}
    write_folder(base3, config=dense, tensors=codes, **shared)
    size = (hub / "model.safetensors").stat().st_size / 1e6
    assert size > 28
    folders = [str(folder) for folder in (hub, hub, run, base3)]
    child = [sys.executable, "-c", MEASURE, *folders]
    shown = subprocess.run(child, check=True, capture_output=True, text=True)
    for peak in json.loads(shown.stdout):
        assert 0.9 * size < peak < 1.9 * size  # of one mapping: twice, and 20 MB beside
