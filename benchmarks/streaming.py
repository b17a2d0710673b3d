"""Streaming: an epoch of 100,000 images from a server that drops requests, and decoding per core.

    python benchmarks/streaming.py [--images 100000] [--out benchmarks/streaming.json]

1. Shards of small PNG images, each of which says in its first pixel which it is, come from a local
   web server that breaks off every 50th answer in its middle. Two epochs are read through copies
   of at most 64 MiB. Told: whether each image came exactly once an epoch, the peak of the memory of
   the reading process, and the requests.
2. The same decoding, file to uint8 array in batches, on one core, by this library, by `webdataset`,
   and by torch's DataLoader with Pillow on single files. Told: images per second of CPU time, since
   the wall clock knows of other work on the machine.
"""

import argparse
import io
import itertools
import json
import multiprocessing
import os
import platform
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffit.data import open_dataset
from diffit.data.index_shards import index_shards
from diffit.data.stream import StreamLoader
from diffit.data.stream_config import StreamConfig

BATCH = 250
PER_SHARD = 100
DROPPED = 50
"""Every so many-th answer breaks off."""
CACHE_MIB = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--decoded", type=int, default=10_000, help="images of the comparison")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bad_network = stream_epochs(Path(folder) / "stream", args.images)
        decoding = [
            *compare(Path(folder) / "png", 32, "png", args.decoded),
            *compare(Path(folder) / "jpeg", 256, "jpg", args.decoded // 10),
        ]
    print(json.dumps(bad_network, indent=2))
    for row in decoding:
        print(f"{row['images']:24} {row['reader']:28} {row['images_per_cpu_s']:8,}")
    if args.out:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "batch": BATCH}
        content = {"machine": machine, "bad_network": bad_network, "decoding": decoding}
        args.out.write_text(json.dumps(content, indent=2) + "\n")


def stream_epochs(folder: Path, images: int) -> dict[str, Any]:
    """Two epochs over http, in a process of their own, whose memory is measured."""
    folder.mkdir()
    write_shards(folder, images, 32, "png", per_shard=PER_SHARD)
    index_shards(str(folder), folder / "shards.json")
    size = sum(path.stat().st_size for path in folder.glob("*.tar"))
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(folder, there), daemon=True)
    server.start()
    port = here.recv()
    cache = folder.parent / "cache"
    reader = context.Process(target=read_epochs, args=(port, cache, images, there))
    reader.start()
    found = here.recv()
    reader.join()
    here.send("stop")
    found |= here.recv()
    server.join()
    return {"images": images, "shards": -(-images // PER_SHARD), "set_mib": size >> 20, **found}


def read_epochs(port: int, cache: Path, images: int, told: Any) -> None:
    """Tell whether two epochs held each image once, and how much memory that took."""
    torch.set_num_threads(1)
    config = StreamConfig(cache=str(cache), cache_gib=CACHE_MIB / 1024, timeout=5)
    dataset = open_dataset(f"http://127.0.0.1:{port}/", stream=config)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    complete, largest = [], 0
    with StreamLoader(dataset, batch=BATCH, seed=0, config=config) as loader:
        for _ in range(2):
            seen = np.zeros(images, np.int64)
            for _ in range(images // BATCH):
                np.add.at(seen, numbers_in(next(loader).image.numpy()), 1)
                largest = max(largest, sum(path.stat().st_size for path in cache.glob("*.shard")))
            complete.append(bool((seen == 1).all()))
    told.send({
        "each_image_once": complete,
        "seconds": round(time.perf_counter() - start, 1),
        "images_per_s": round(2 * images / (time.perf_counter() - start)),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "rss_before_mib": before >> 10,
        "largest_cache_mib": largest >> 20,
        "cache_limit_mib": CACHE_MIB,
    })  # fmt: skip


def numbers_in(images: np.ndarray) -> np.ndarray:
    """Which image each is: its first pixel, read as a number of three digits to the base 256."""
    return images[:, :, 0, 0].astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


class Handler(BaseHTTPRequestHandler):
    """Serves files by ranges; every so many-th answer breaks off in its middle."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.server.requests += 1
        data = (self.server.folder / self.path.lstrip("/")).read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.server.requests % DROPPED == 0:
            self.wfile.write(data[start : (start + len(data)) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data[start:])

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.requests = folder, 0


def serve(folder: Path, told: Any) -> None:
    import threading

    server = Server(folder)
    told.send(server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told.recv()
    told.send({"requests": server.requests, "answers_broken_off": server.requests // DROPPED})


def write_shards(folder: Path, images: int, side: int, ending: str, *, per_shard: int) -> None:
    """Crops of the embedded photographs, enlarged, each with its number in its first pixel."""
    for shard, first in enumerate(range(0, images, per_shard)):
        with tarfile.open(folder / f"s-{shard:06d}.tar", "w") as tar:
            for number in range(first, min(first + per_shard, images)):
                data = encoded(number, side, ending)
                info = tarfile.TarInfo(f"{number:08d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


PATCHES = open_dataset("builtin:patches")


def encoded(number: int, side: int, ending: str) -> bytes:
    pixels = PATCHES[number % len(PATCHES)].image.transpose(1, 2, 0).copy()
    pixels[0, 0] = number >> 16, number >> 8 & 255, number & 255
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if side != pixels.shape[0]:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    image.save(buffer, "PNG" if ending == "png" else "JPEG", quality=90)
    return buffer.getvalue()


def compare(folder: Path, side: int, ending: str, images: int) -> list[dict[str, object]]:
    """Images per second of CPU time by three readers of the same images."""
    folder.mkdir()
    write_shards(folder, images, side, ending, per_shard=1000)
    single = folder.parent / f"{folder.name}-single"
    single.mkdir()
    for number in range(images):
        (single / f"{number:08d}.{ending}").write_bytes(encoded(number, side, ending))
    readers: dict[str, Callable[[], Iterator[Any]]] = {
        "diffit": lambda: ours(folder),
        "webdataset": lambda: of_webdataset(folder),
        "torch DataLoader + Pillow": lambda: of_torch(single),
    }
    name = f"{side} px {ending.upper()}, {images:,}"
    return [
        {"images": name, "reader": reader, "images_per_cpu_s": round(rate(make, images))}
        for reader, make in readers.items()
    ]


def rate(make: Callable[[], Iterator[Any]], images: int) -> float:
    """The best of three passes, each from the opening of the files on."""
    best = 0.0
    for _ in range(3):
        start = time.process_time()
        for _ in itertools.islice(make(), images // BATCH):
            pass
        best = max(best, images / (time.process_time() - start))
    return best


def ours(folder: Path) -> Iterator[Any]:
    return StreamLoader(open_dataset(folder), batch=BATCH, seed=0)  # type: ignore[arg-type]


def of_webdataset(folder: Path) -> Iterator[Any]:
    import webdataset

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    stream = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(4000)
    return iter(batches(planes(decode(s.get("png") or s["jpg"])) for s in stream))


def of_torch(folder: Path) -> Iterator[Any]:
    class Files(torch.utils.data.Dataset):  # type: ignore[misc]
        paths = sorted(folder.iterdir())

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, i: int) -> np.ndarray:
            return planes(decode(self.paths[i].read_bytes()))

    return iter(torch.utils.data.DataLoader(Files(), batch_size=BATCH, shuffle=True))


def batches(images: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
    images = iter(images)
    while part := list(itertools.islice(images, BATCH)):
        yield torch.from_numpy(np.stack(part))


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def planes(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


if __name__ == "__main__":
    main()
