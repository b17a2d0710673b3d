"""Restoration: what was measured of an image, and the methods that find images that explain it."""

from diffit.errors import UsageError
from diffit.restoration.ddnm import ddnm
from diffit.restoration.ddrm import ddrm
from diffit.restoration.diffpir import diffpir
from diffit.restoration.dps import dps
from diffit.restoration.method import Method, Restoration
from diffit.restoration.operators import Mask, Operator, is_linear, is_spectral

__all__ = ["METHODS", "Method", "Restoration", "check_fits"]

METHODS: dict[str, Method] = {
    "ddrm": Method(
        ddrm,
        "DDRM: along singular directions, in few steps",
        ("linear", "spectral"),
        {"eta": 0.85, "eta_b": 1.0, "project_last": True},
        steps=20,
        published="20 steps, eta 0.85, eta_b 1",
    ),
    "ddnm": Method(
        ddnm,
        "DDNM, with noise DDNM+: agrees with the measurement exactly",
        ("linear",),
        {"eta": 0.85, "travel_length": 1, "travel_repeat": 1, "clip": True},
        steps=100,
        published="100 steps, eta 0.85",
    ),
    "diffpir": Method(
        diffpir,
        "DiffPIR: proximal steps, for any linear operator",
        ("linear",),
        {"weight": 1.0, "zeta": 1.0, "clip": True},
        steps=100,
        published="100 steps, lambda 1 to 13, zeta 0.1 to 1",
    ),
    "dps": Method(
        dps,
        "DPS: gradients through the network, for operators of any kind",
        ("gradient",),
        {"zeta": 0.3, "clip": True},
        steps=1000,
        published="1000 steps, zeta 0.3 to 1",
    ),
}
"""Name to method."""


def check_fits(method: str, operator: Operator, *, latent: bool, sigma_y: float) -> None:
    """UsageError, naming the methods that fit, unless this one does."""
    reason = _misfit(method, operator, latent=latent, sigma_y=sigma_y)
    if reason is None:
        return
    fit = [
        name for name in METHODS
        if _misfit(name, operator, latent=latent, sigma_y=sigma_y) is None
    ]  # fmt: skip
    others = f"take {', '.join(fit)}" if fit else "no method fits"
    raise UsageError(f"{method} {reason}; {others}")


def _misfit(name: str, operator: Operator, *, latent: bool, sigma_y: float) -> str | None:
    """Why a method cannot solve a problem; None if it can."""
    needs = METHODS[name].needs
    if latent:
        return "works on pixels, and this model draws latents"
    if "linear" in needs and not is_linear(operator):
        return "needs a linear operator"
    if "spectral" in needs and not is_spectral(operator):
        return "needs the singular value decomposition of the operator"
    if name == "ddnm" and sigma_y > 0 and not is_spectral(operator):
        return "needs the singular value decomposition of the operator where y has noise"
    if "mask" in needs and not isinstance(operator, Mask):
        return "is for inpainting"
    return None
