"""The folder of `diffit restore`: its plan, a record for each image, claims, resuming.

OUT/plan.json            what was asked for; the same command continues, another is refused
OUT/records/NAME.json    NAME is restored: figures, and the hash of each of its files
OUT/records/NAME.claim   a process restores NAME, or died over it
OUT/restore.json         plan and records together, when all is done
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffit.claims import PAUSE, claim
from diffit.data.images import write_atomic
from diffit.errors import UsageError
from diffit.training.folder import write_whole

PLAN = "plan.json"


def begin(out: Path, plan: Mapping[str, Any]) -> None:
    """Make the folder, or go on with one of the same plan; UsageError for another one."""
    path = out / PLAN
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a new folder")
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise UsageError(f"--out {out} holds other files; name a new folder")
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(plan, indent=1) + "\n")
        return
    before = _read(path)
    if before is None:
        raise UsageError(f"{path} is damaged; remove its folder and begin again")
    asked = json.loads(json.dumps(plan))
    if changed := [key for key in asked if key != "command" and before.get(key) != asked[key]]:
        raise UsageError(
            f"{out} was begun with another {changed[0].replace('_', '-')}; repeat that command, "
            "or name a new folder"
        )


def read_record(out: Path, name: str) -> dict[str, Any] | None:
    """The record of an image; None unless all of its files are as they were written."""
    record = _read(_record(out, name))
    if record is None or not isinstance(record.get("files"), dict):
        return None
    same = all(_hash_of_file(out / file) == value for file, value in record["files"].items())
    return record if same else None


def write_result(out: Path, name: str, files: Mapping[str, bytes], record: dict[str, Any]) -> None:
    """Write the files of an image, ``record`` last."""
    for file, data in files.items():
        (out / file).parent.mkdir(exist_ok=True)
        write_atomic(out / file, data)
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    write_whole(_record(out, name), json.dumps({**record, "files": hashes}, indent=1) + "\n")


def claimed(out: Path, names: Sequence[str]) -> Iterator[str]:
    """The names that this process shall restore, until all are restored by it or by others."""
    (out / "records").mkdir(exist_ok=True)
    left, alone = list(names), True
    while left:
        passed = []
        for name in left:
            if read_record(out, name) is not None:
                continue
            with claim(_record(out, name).with_suffix(".claim")) as holder:
                if holder == "busy" or (holder == "elsewhere" and alone):
                    passed.append(name)
                elif read_record(out, name) is None:  # its last holder may just have finished
                    yield name
        if not alone and len(passed) == len(left):
            time.sleep(PAUSE)
        left, alone = passed, False


def finish(out: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Write `restore.json`; the records."""
    records = [record for name in names if (record := read_record(out, name)) is not None]
    plan = _read(out / PLAN)
    write_whole(
        out / "restore.json", json.dumps({"plan": plan, "images": records}, indent=1) + "\n"
    )
    return records


def _record(out: Path, name: str) -> Path:
    return out / "records" / f"{name}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _hash_of_file(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
