"""The published codes that this library reads and writes: one module of this package each.

A new family is a module with the members of `diffit.convert.family.Family`, and a line here.
"""

from collections.abc import Collection

from diffit.config import nearest
from diffit.convert import (
    diffit,
    diffit_v2,
    diffusers_dit,
    dimr,
    dit,
    large_dit,
    mdt,
    terdit,
    uvit,
)
from diffit.convert.family import Family
from diffit.errors import CheckpointError

FAMILIES: dict[str, Family] = {
    "diffit": diffit,
    "diffit-v2": diffit_v2,
    "dit": dit,
    "diffusers-dit": diffusers_dit,
    "uvit": uvit,
    "mdt": mdt,
    "dimr": dimr,
    "terdit": terdit,
    "large-dit": large_dit,
}
"""Codes whose files are read, the first to be tried before the next."""


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


def find(name: str) -> Family:
    """The entry of `FAMILIES`; CheckpointError if there is none of that name."""
    if name not in FAMILIES:
        raise CheckpointError(f"there is no family {name!r}; {nearest(name, list(FAMILIES))}")
    return FAMILIES[name]
