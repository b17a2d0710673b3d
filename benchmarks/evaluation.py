"""Time and memory of the figures from stored features: 50,000 samples against 10,000 images.

    python benchmarks/evaluation.py [--samples 50000] [--reference 10000] [--dims 2048]

Features are random, with a spectrum that falls as real ones do. Everything after the network is
timed: moments, FID with its interval, sFID, IS, precision, recall, density, coverage, KID.
"""

import argparse
import json
import platform
import resource
import time
from pathlib import Path

import torch

from diffit.evaluation.distances import frechet, kid
from diffit.evaluation.figures import KID_MOST
from diffit.evaluation.intervals import of_frechet_groups
from diffit.evaluation.measuring import GROUPS
from diffit.evaluation.moments import Moments, merged
from diffit.evaluation.neighbours import neighbours
from diffit.evaluation.scores import Scores

OUT = Path(__file__).with_suffix(".json")
BATCH = 500


def main() -> None:
    """Time each step, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--reference", type=int, default=10_000)
    parser.add_argument("--dims", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    samples = features(args.samples, args.dims, 0)
    reference = features(args.reference, args.dims, 1)
    before = peak()
    seconds: dict[str, float] = {}

    def timed(name, function):
        wall, cpu = time.perf_counter(), time.process_time()
        result = function()
        seconds[name] = round(time.perf_counter() - wall, 2)
        seconds[f"{name}, CPU"] = round(time.process_time() - cpu, 2)
        print(f"{name:32} {seconds[name]:8.2f} s   CPU {seconds[f'{name}, CPU']:8.2f} s")
        return result

    groups = timed("moments of the samples", lambda: moments(samples, GROUPS))
    theirs = timed("moments of the reference", lambda: merged(moments(reference, 1)).gaussian())
    value = timed("FID", lambda: frechet(merged(groups).gaussian(), theirs))
    timed("interval of FID", lambda: of_frechet_groups(groups, theirs, value))
    spatial = timed("moments of sFID", lambda: moments(samples[:, :2023], 1))
    timed("sFID", lambda: frechet(merged(spatial).gaussian(), merged(spatial).gaussian()))
    timed("IS", lambda: score(args.samples))
    timed("precision, recall and the like", lambda: neighbours(samples, reference))
    timed("KID", lambda: kid(samples[:KID_MOST], reference[:KID_MOST]))
    total = sum(value for name, value in seconds.items() if not name.endswith("CPU"))
    result = {
        "command": "python benchmarks/evaluation.py",
        "samples": args.samples,
        "reference": args.reference,
        "dims": args.dims,
        "threads": args.threads,
        "seconds": seconds | {"total": round(total, 1)},
        "features_bytes": samples.nbytes + reference.nbytes,
        "peak_bytes": peak(),
        "peak_before_bytes": before,
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }
    print(f"total {total:.1f} s, peak memory {peak() / 1e9:.2f} GB, of it features "
          f"{result['features_bytes'] / 1e9:.2f} GB")  # fmt: skip
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def features(count: int, dims: int, seed: int) -> torch.Tensor:
    """(count, dims) float32 with variances that fall as 1/k, made in parts."""
    draw = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, dims + 1).rsqrt()
    result = torch.empty(count, dims)
    for part in result.split(1000):
        part.copy_(torch.randn(part.shape, generator=draw) * spectrum)
    return result


def moments(x: torch.Tensor, groups: int) -> list[Moments]:
    """Moments of batches, in groups, as a pass over images leaves them."""
    found = [Moments(x.shape[1]) for _ in range(groups)]
    for number, part in enumerate(x.split(BATCH)):
        found[number % groups].update(part)
    return found


def score(count: int) -> torch.Tensor:
    """The Inception Score of random logits."""
    scores = Scores(count, 1008)
    draw = torch.Generator().manual_seed(2)
    for first in range(0, count, BATCH):
        scores.update(first, torch.randn(min(BATCH, count - first), 1008, generator=draw))
    return scores.values()


def peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
