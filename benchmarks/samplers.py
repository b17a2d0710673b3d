"""Error of every ODE sampler against its evaluations, on data whose flow is known.

    python benchmarks/samplers.py [--out benchmarks]

The data are a mixture of 24 Gaussians in 192 dimensions (as many as an 8 x 8 colour image), the
denoiser is exact, and the reference is an eighth-order solution of the probability flow. What is
left is the sampler's own error: root mean square over pixels at sigma = 0, for EDM's Karras levels.
Writes samplers.json and samplers.png.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch

from diffit.diffusion.formulation import EDMConfig, build_formulation
from diffit.diffusion.schedule import levels
from diffit.samplers import SAMPLERS
from diffit.samplers.unipc import unipc

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from oracle import Mixture

ROW = build_formulation(EDMConfig())
SOLVERS = {
    **{name: SAMPLERS[name].run for name in ("euler", "heun", "dpmpp-2s", "dpmpp-3s", "dpmpp-2m")},
    "dpmpp-3m": SAMPLERS["dpmpp-3m"].run,
    "unipc-2": partial(unipc, order=2),
    "unipc-3": partial(unipc, order=3),
}
BUDGETS = (5, 7, 9, 13, 19, 27, 39, 55, 79, 111)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder")
    args = parser.parse_args()
    rows = measure()
    print(f"{'sampler':10}" + "".join(f"{budget:>10}" for budget in BUDGETS))
    for name in SOLVERS:
        errors = [row["error"] for row in rows if row["sampler"] == name]
        print(f"{name:10}" + "".join(f"{error:10.2e}" for error in errors))
    about = {"data": "24 Gaussians in 192 dimensions", "levels": "karras, 80 to 0.002, then 0"}
    (args.out / "samplers.json").write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    draw(rows, args.out / "samplers.png")


def measure() -> list[dict]:
    """One row for each sampler and budget of evaluations; all budgets are odd, as Heun's are."""
    data, x = bumps(), torch.randn(32, 3, 8, 8, dtype=torch.float64, generator=seeded(1)) * 80
    exact = data.solution(x, 80, 1e-5)
    rows = []
    for name, solver in SOLVERS.items():
        for budget in BUDGETS:
            steps = (budget + 1) // 2 if name == "heun" else budget
            end = solver(data, x, levels("karras", steps, ROW), noise=None)
            error = (end - exact).square().mean().sqrt().item()
            rows.append({"sampler": name, "evaluations": budget, "error": error})
    return rows


def bumps() -> Mixture:
    """Centres of contrast 0.5, widths between 0.02 and 0.2: near-duplicates as well as textures."""
    means = torch.randn(24, 3, 8, 8, dtype=torch.float64, generator=seeded(0)) * 0.5
    return Mixture(means, torch.logspace(-1.7, -0.7, 24))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(rows: list[dict], path: Path) -> None:
    """Error against evaluations, both logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name in SOLVERS:
        own = [row for row in rows if row["sampler"] == name]
        axes.loglog(
            [row["evaluations"] for row in own], [row["error"] for row in own], ".-", label=name
        )
    axes.set_xlabel("evaluations of the denoiser")
    axes.set_ylabel("root mean square error of a pixel in [-1, 1]")
    axes.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS], minor=False)
    axes.minorticks_off()
    axes.axhline(1 / 127.5, color="grey", linewidth=0.8)
    axes.text(BUDGETS[0], 1 / 127.5, "one step of 8 bits", color="grey", va="bottom", fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, fontsize=8)
    FigureCanvasAgg(figure).print_png(str(path))


if __name__ == "__main__":
    main()
