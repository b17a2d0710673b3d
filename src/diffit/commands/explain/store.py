"""Parts of a long measurement, each written whole: whoever repeats it finds what was finished."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffit.training.folder import write_whole

FOLDER = "parts"


class Store:
    """Results by name, in a folder.

    Args:
        out: the folder of the measurement.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """What is kept under a name; made, and kept, if there is nothing or it is damaged."""
        path = self.folder / f"{name}.json"
        try:
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            made = make()
            write_whole(path, json.dumps(made) + "\n")
            return json.loads(json.dumps(made))

    def has(self, name: str) -> bool:
        """Whether something is kept under a name."""
        return (self.folder / f"{name}.json").is_file()
