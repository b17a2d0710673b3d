"""Imports only point down, and packages of one layer do not know each other."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "diffit"

LAYERS = {
    "errors": 0, "config": 0, "arguments": 0, "distributed": 0, "launch": 0, "draws": 0,
    "__init__": 0,
    "sealed": 0, "averages": 0, "fetch": 0, "claims": 0, "pieces": 0,
    "nn": 1, "diffusion": 1, "codecs": 1, "data": 1,
    "networks": 2, "samplers": 2,
    "model": 3, "sampling": 3, "restoration": 3,
    "checkpoint": 4, "generation": 4, "report": 4, "trajectory": 4, "samples": 4, "drawing": 4,
    "work": 4, "products": 4, "protocols": 4, "restoring": 4, "hub": 4, "convert": 4,
    "explain": 4,
    "training": 5, "evaluation": 5, "deploy": 5,
    "commands": 6,
    "cli": 7, "__main__": 8,
}  # fmt: skip


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first if first in LAYERS else first.removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            pytest.fail(f"{path} imports relatively; write the full name")
    parts = {name.split(".")[1] for name in names if name.startswith("diffit.")}
    return {part for part in parts if part in LAYERS}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_down(path: Path) -> None:
    own = part_of(path)
    assert own in LAYERS, f"{own} has no layer yet"
    if own == "__init__":
        return  # the package's lazy attributes reach up on purpose
    for other in imported_parts(path) - {own}:
        # Layers 0 and 4 hold single files, which may use one another.
        level = LAYERS[other] == LAYERS[own] and LAYERS[own] in (0, 4)
        assert level or LAYERS[other] < LAYERS[own], (
            f"{path.relative_to(PACKAGE)} (layer {LAYERS[own]}) imports {other} "
            f"(layer {LAYERS[other]})"
        )


def test_nothing_imports_torchvision() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import torchvision" not in text, path
        assert "from torchvision" not in text, path


def test_names_of_test_files_are_unique() -> None:
    # Without packages, pytest knows a file by its name alone.
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
