"""Restoration: what was measured of an image, and the methods that find images that explain it."""

from diffit.errors import UsageError
from diffit.restoration.ccdf import ccdf
from diffit.restoration.ddnm import ddnm
from diffit.restoration.ddrm import ddrm
from diffit.restoration.diffpir import diffpir
from diffit.restoration.dps import dps
from diffit.restoration.ilvr import ilvr
from diffit.restoration.latent import latent_dps
from diffit.restoration.method import Method, Restoration
from diffit.restoration.operators import Mask, Operator, is_linear, is_spectral
from diffit.restoration.pigdm import pigdm
from diffit.restoration.red_diff import red_diff
from diffit.restoration.repaint import repaint

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
        {"eta": None, "travel_length": 1, "travel_repeat": 1, "clip": True},
        steps=100,
        published="100 steps, eta 0.85",
    ),
    "diffpir": Method(
        diffpir,
        "DiffPIR: proximal steps, for any linear operator",
        ("linear",),
        {"weight": 4.0, "zeta": 1.0, "eta": 0.0, "clip": True},
        steps=100,
        published="100 steps, lambda 1 to 13, zeta 0.1 to 1",
    ),
    "dps": Method(
        dps,
        "DPS: gradients through the network, for operators of any kind",
        ("gradient",),
        {"zeta": 1.0, "clip": True},
        steps=1000,
        published="1000 steps, zeta 0.3 to 1",
    ),
    "pigdm": Method(
        pigdm,
        "PiGDM: the pseudo-inverse through the network, in few steps",
        ("inverse", "gradient"),
        {"eta": 1.0, "adaptive": True, "clip": True},
        steps=100,
        published="20 to 100 steps, eta 0 or 1",
    ),
    "repaint": Method(
        repaint,
        "RePaint: inpainting with jumps back to noise",
        ("mask",),
        {"jump_length": 10, "jump_repeat": 3, "clip": True, "paste_known": True},
        steps=100,
        published="250 steps, jumps of 10 levels, each stretch 10 times",
    ),
    "ilvr": Method(
        ilvr,
        "ILVR: what the operator sees is replaced at every level",
        ("linear",),
        {"until": 0.0, "clip": True},
        steps=100,
        published="100 to 1000 steps",
    ),
    "ccdf": Method(
        ccdf,
        "CCDF: a short way from a coarse estimate",
        ("linear",),
        {"start": 0.5, "clip": True},
        steps=100,
        published="the last 20 % of 1000 steps",
    ),
    "red-diff": Method(
        red_diff,
        "RED-diff: one image is optimised, for operators of any kind",
        (),
        {"weight": 0.25, "rate": 0.1, "clip": True},
        steps=200,
        published="1000 steps, lambda 0.25, rate 0.1",
    ),
    "latent-dps": Method(
        latent_dps,
        "DPS through the decoder, for models of latents",
        ("latent", "gradient"),
        {"zeta": 0.3},
        steps=1000,
        published="1000 steps",
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
    if latent != ("latent" in needs):
        return f"works on {'pixels' if latent else 'latents'}, and this model draws the other"
    if "linear" in needs and not is_linear(operator):
        return "needs a linear operator"
    if "inverse" in needs and not hasattr(operator, "pinv"):
        return "needs an operator with an inverse, be it a rough one"
    if "spectral" in needs and not is_spectral(operator):
        return "needs the singular value decomposition of the operator"
    if name == "ddnm" and sigma_y > 0 and not is_spectral(operator):
        return "needs the singular value decomposition of the operator where y has noise"
    if "mask" in needs and not isinstance(operator, Mask):
        return "is for inpainting"
    return None
