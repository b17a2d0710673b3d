"""How many maps a certified explanation takes, and what it certifies: 16 tokens, real digits.

    python benchmarks/map_certificates.py CLASSIFIER DENOISER [--images 8] [--maps 4000]

For each image a smoothed map of its class is certified for the top 4 of 16 tokens: as a point
estimate, and with confidence 0.95 for the top 4 of the smoothed map and for those reported.

The table beside this file is of a ViT for `builtin:digits` (patch 2, width 64, depth 4, 96.7 % of
the held-out images) and of a DiffiT that was trained on the same digits without classes (319,741
parameters, EDM, 171,072 images).
"""

import argparse
import json
import statistics
from functools import partial
from pathlib import Path

import torch

from diffit.checkpoint import load
from diffit.data import open_dataset
from diffit.explain.attribution import token_maps
from diffit.explain.bounds import Top
from diffit.explain.fitting import check_fit, smoothing_of
from diffit.explain.opening import open_classifier
from diffit.explain.region import MapCertificate, certify_estimate
from diffit.explain.smoothed import SmoothedMap, mean_map
from diffit.explain.smoothing import Smoothed
from diffit.explain.units import from_pm1, to_pm1

OUT = Path(__file__).with_suffix(".json")
METHODS = ("raw-attention", "rollout", "transformer-attribution")
KINDS: tuple[tuple[str, Top, float | None], ...] = (
    ("point estimate", "smoothed", None),
    ("smoothed top 4, 95 %", "smoothed", 0.05),
    ("reported top 4, 95 %", "reported", 0.05),
)


def main() -> None:
    """Certify, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("classifier", type=Path)
    parser.add_argument("denoiser", type=Path)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--maps", type=int, default=4000)
    parser.add_argument("--sigma", type=float, default=0.25, help="for pixels in [0, 1]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    classifier, model = open_classifier(str(args.classifier)), load(args.denoiser)
    check_fit(classifier, model, model.shape)
    data = open_dataset("builtin:digits-test")
    smoothing = smoothing_of(model, to_pm1(args.sigma, "01"))
    rows = []
    for method in METHODS:
        smoothed = Smoothed(classifier, smoothing, partial(token_maps, method, classifier))
        maps = []
        for i in range(args.images):
            image = torch.from_numpy(data[i].image).float() / 127.5 - 1
            maps.append(mean_map(smoothed, image, data[i].label, m=args.maps, number=i))
        for kind, of, eta in KINDS:
            for beta in (1.0, 0.75, 0.5):
                found = [certificate(one, beta, of, eta, smoothing.sigma) for one in maps]
                rows.append({"method": method, "kind": kind, "beta": beta} | summary(found))
                print(rows[-1], flush=True)
    result = {
        "command": f"python benchmarks/map_certificates.py CLASSIFIER DENOISER --images "
        f"{args.images} --maps {args.maps} --sigma {args.sigma}",
        "units": "radii for pixels in [0, 1]",
        "rows": rows,
        "torch": torch.__version__,
    }
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def certificate(
    found: SmoothedMap, beta: float, of: Top, eta: float | None, sigma: float
) -> MapCertificate:
    """The certificate of the top 4 of one map."""
    return certify_estimate(found.moments, 4, beta, sigma=sigma, dimensions=64, of=of, eta=eta)


def summary(found: list[MapCertificate]) -> dict[str, object]:
    """Median radius, how many have one, and how many maps the median one needs."""
    radii = [from_pm1(one.radius_l2, "01") for one in found]
    needed = [one.needed for one in found if one.needed is not None]
    return {
        "median radius": round(statistics.median(radii), 4),
        "largest radius": round(max(radii), 4),
        "with a radius": sum(radius > 0 for radius in radii),
        "of images": len(radii),
        "median maps needed": round(statistics.median(needed)) if needed else None,
    }


if __name__ == "__main__":
    main()
