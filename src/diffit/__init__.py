"""The open toolkit for diffusion vision transformers, with DiffiT at its heart."""

from typing import TYPE_CHECKING, Any

__version__ = "0.4.0"
__all__ = ["generate", "load"]

if TYPE_CHECKING:
    from diffit.checkpoint import load
    from diffit.generation import generate


def __getattr__(name: str) -> Any:
    # Lazy, so that `import diffit` and `diffit --help` do not wait for torch.
    if name == "load":
        from diffit.checkpoint import load

        return load
    if name == "generate":
        from diffit.generation import generate

        return generate
    raise AttributeError(f"module 'diffit' has no attribute {name!r}")
