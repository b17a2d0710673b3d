"""Draw images from an exported model; needs numpy and onnxruntime alone.

python sample.py --seed 0 --count 8 --label 3 --out digits
"""

import argparse
import itertools
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

HERE = Path(__file__).parent


def unit_noise(seed: int, shape: list[int]) -> Any:
    """The noise that `diffit sample` draws for this seed."""
    key = np.array([seed % (1 << 64), zlib.crc32(b"sample")], dtype=np.uint64)
    stream = np.random.Generator(np.random.Philox(key=key, counter=np.zeros(4, np.uint64)))
    return stream.standard_normal(shape, dtype=np.float32).astype(np.float64)


def heun(denoise: Any, x: np.ndarray, sigmas: list[float]) -> Any:
    """The probability-flow ODE in second order (arXiv:2206.00364, Algorithm 1)."""
    for sigma, lower in itertools.pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        trial = x + (lower - sigma) * slope
        if lower == 0:
            return trial
        x = x + (lower - sigma) * (slope + (trial - denoise(trial, lower)) / lower) / 2
    return x


def denoiser(session: Any, label: int | None, guidance: float, null: int | None) -> Any:
    """D(x, sigma) with label and guidance inside."""

    def estimate(x: np.ndarray, sigma: float, label: int | None) -> Any:
        feed = {"x": x.astype(np.float32), "sigma": np.full(len(x), sigma)}
        if label is not None:
            feed["label"] = np.full(len(x), label)
        return session.run(None, feed)[0].astype(np.float64)

    def denoise(x: np.ndarray, sigma: float) -> Any:
        clean = estimate(x, sigma, label)
        if label in (None, null) or guidance == 1:
            return clean
        without = estimate(x, sigma, null)
        return without + guidance * (clean - without)

    return denoise


def png(image: np.ndarray) -> bytes:
    """(C, H, W) uint8 as a PNG file."""
    rows = np.moveaxis(image, 0, -1)
    height, width, channels = rows.shape
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def main() -> None:
    about = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
    null = about["classes"] or None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the first image")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--label", type=int, default=null, help="class of all images")
    parser.add_argument("--guidance", type=float, default=about["guidance"])
    parser.add_argument("--out", type=Path, default=Path("samples"))
    args = parser.parse_args()
    session = onnxruntime.InferenceSession(HERE / about["denoiser"])
    noise = np.stack([unit_noise(args.seed + i, about["shape"]) for i in range(args.count)])
    denoise = denoiser(session, args.label, args.guidance, null)
    x = heun(denoise, about["prior_std"] * noise, about["sigmas"])
    if about["decoder"]:
        decoder = onnxruntime.InferenceSession(HERE / about["decoder"])
        latents = np.split(x.astype(np.float32), len(x))  # one at a time, as `diffit sample` does
        x = np.concatenate([decoder.run(None, {"latent": latent})[0] for latent in latents])
    half = 0.5 if about["rounding"] == "nearest" else 0
    images = np.clip(x.astype(np.float32) * 127.5 + 127.5 + half, 0, 255).astype(np.uint8)
    args.out.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        (args.out / f"{args.seed + i:06d}.png").write_bytes(png(image))
    print(f"{len(images)} images in {args.out}")


if __name__ == "__main__":
    main()
