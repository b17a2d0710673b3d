"""The published codes that this library reads and writes: one module of this package each.

A new family is a module with the members of `diffit.convert.family.Family`, and a line here.
"""

from collections.abc import Collection, Mapping
from typing import TypeVar

from diffit.config import nearest
from diffit.convert import diffit, diffit_v2, diffusers_dit, dimr, dit, mdt, uvit
from diffit.convert.family import Family, Layout
from diffit.errors import CheckpointError

FAMILIES: dict[str, Family] = {
    "diffit": diffit,
    "diffit-v2": diffit_v2,
    "dit": dit,
    "diffusers-dit": diffusers_dit,
    "uvit": uvit,
    "mdt": mdt,
}
"""Codes whose files are read, the first to be tried before the next."""

LAYOUTS: dict[str, Layout] = {**FAMILIES, "dimr": dimr}
"""Codes whose state dicts are read, given the arguments of their constructors."""


def detect(names: Collection[str], *, source: str = "the checkpoint") -> str:
    """The family that tensors of these names belong to; CheckpointError if none knows them."""
    for family, module in FAMILIES.items():
        if module.recognises(names):
            return family
    shown = ", ".join(sorted(names)[:3])
    raise CheckpointError(
        f"{source} is of no family that this library knows ({', '.join(FAMILIES)}); its tensors "
        f"are called {shown}, ..."
    )


F = TypeVar("F", bound=Layout)


def find(name: str, table: Mapping[str, F]) -> F:
    """An entry of `FAMILIES` or `LAYOUTS`; CheckpointError if there is none of that name."""
    if name not in table:
        raise CheckpointError(f"there is no family {name!r}; {nearest(name, list(table))}")
    return table[name]
