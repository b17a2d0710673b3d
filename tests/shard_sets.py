"""Shards of images that know who they are, and a web server that does not behave."""

import io
import json
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from diffit.data.images import to_png
from diffit.data.shard_index import Shard, ShardIndex, to_json


def image_of(number: int, side: int = 4) -> np.ndarray:
    """(3, side, side) uint8 that says which image it is."""
    digits = np.array([number % 251, number // 251, 7], np.uint8)
    return np.broadcast_to(digits[:, None, None], (3, side, side)).copy()


def number_of(image: np.ndarray) -> int:
    return int(image[0, 0, 0]) + 251 * int(image[1, 0, 0])


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar as the standard library writes it."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(numbers: range, *, classes: int = 0) -> list[tuple[str, bytes]]:
    """Members of a shard with these images; label: number modulo ``classes``."""
    found = []
    for number in numbers:
        found.append((f"{number:06d}.png", to_png(image_of(number))))
        if classes:
            found.append((f"{number:06d}.cls", str(number % classes).encode()))
    return found


def write_shards(folder: Path, counts: list[int], *, classes: int = 0) -> Path:
    """`s-000.tar` and following, with so many images each."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for j, count in enumerate(counts):
        write_tar(folder / f"s-{j:03d}.tar", samples(range(first, first + count), classes=classes))
        first += count
    return folder


def write_index(folder: Path, counts: list[int], *, classes: int = 0, **changes) -> Path:
    shards = [
        Shard(file=f"s-{j:03d}.tar", images=count,
              bytes=(folder / f"s-{j:03d}.tar").stat().st_size)
        for j, count in enumerate(counts)
    ]  # fmt: skip
    index = ShardIndex(
        images=sum(counts),
        shape=(3, 4, 4),
        classes=tuple("abcdefg"[:classes]),
        shards=tuple(shards),
    )
    content = {**json.loads(to_json(index)), **changes}
    (folder / "shards.json").write_text(json.dumps(content))
    return folder / "shards.json"


Fault = Callable[["Handler", bytes], bool]
"""Answers a request for a file's bytes; False if all is well and the server shall answer."""


class Handler(BaseHTTPRequestHandler):
    """Serves the files of a folder by ranges, unless the server's fault has its way."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        if self.server.fault is not None and self.server.fault(self, data):
            self.close_connection = True
            return
        self.answer(data)

    def answer(self, data: bytes, *, cut: int | None = None) -> None:
        """The bytes from the range's start on, of which only ``cut`` are sent."""
        start = 0
        if (span := self.headers.get("Range")) and self.server.ranges:
            start = int(span.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.server.sent += len(data[start:][:cut])
        self.wfile.write(data[start:][:cut])

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path, fault: Fault | None, *, ranges: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.fault, self.ranges = folder, fault, ranges
        self.asked: Counter[str] = Counter()
        self.sent = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path, fault: Fault | None = None, *, ranges: bool = True) -> Iterator[Server]:
    server = Server(folder, fault, ranges=ranges)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def every(count: int, fault: Fault) -> Fault:
    """A fault of every ``count``-th request."""
    seen, lock = [0], threading.Lock()

    def sometimes(handler: Handler, data: bytes) -> bool:
        with lock:
            seen[0] += 1
            now = seen[0] % count == 0
        return now and fault(handler, data)

    return sometimes


def first(count: int, fault: Fault) -> Fault:
    """A fault of the first ``count`` requests."""
    seen, lock = [0], threading.Lock()

    def then_well(handler: Handler, data: bytes) -> bool:
        with lock:
            seen[0] += 1
            now = seen[0] <= count
        return now and fault(handler, data)

    return then_well


def drop(handler: Handler, data: bytes) -> bool:
    """The connection closes without a word."""
    handler.connection.close()
    return True


def answer_500(handler: Handler, data: bytes) -> bool:
    handler.send_error(500)
    return True


def cut_in_the_middle(handler: Handler, data: bytes) -> bool:
    """The whole length is announced, half of what is left is sent."""
    start = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
    handler.answer(data, cut=(len(data) - start) // 2)
    return True


def stall(handler: Handler, data: bytes) -> bool:
    """Something is sent, and then nothing for longer than any test waits."""
    handler.answer(data, cut=700)
    handler.wfile.flush()
    time.sleep(1.5)
    return True


def parquet_of(path: Path, numbers: range, *, classes: int = 0, named: bool = True) -> Path:
    """A parquet file in the layout of Hugging Face `datasets`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": to_png(image_of(n)), "path": f"{n}.png"} for n in numbers]
    columns = {"image": pa.array(images)}
    features: dict = {"image": {"_type": "Image"}}
    if classes:
        columns["label"] = pa.array([n % classes for n in numbers], pa.int64())
        names = [f"class {c}" for c in range(classes)]
        features["label"] = {"_type": "ClassLabel", "names": names}
    table = pa.table(columns)
    if named:
        noted = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": noted})
    pq.write_table(table, path, row_group_size=7)
    return path
