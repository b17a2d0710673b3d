"""One form of latents as another, and what is lost by it."""

import numpy as np

from diffit.data.latents import Form, LatentSet, moments

LOWEST_LOGVAR = -30.0
"""Of a standard deviation of 0; the autoencoders' own lower bound."""


def take(latents: LatentSet, i: int, form: Form, *, mirrored: bool, scale: float) -> np.ndarray:
    """Latent i in another form, float32: (2c, h, w), or (c, h, w) times ``scale`` for a point.

    Numbers that have the form already are copied bit for bit.
    """
    facts = latents.facts
    stored = latents.storage.stored(i, mirrored=mirrored)
    if form == facts.form and (form != "point" or facts.scaled_by == scale):
        return stored.astype(np.float32)
    values = moments(stored, facts).astype(np.float32)
    c = facts.shape[0]
    mean, std = values[:c], values[c:] if len(values) > c else np.zeros_like(values)
    if form == "point":
        return np.asarray((mean + std * _noise(i, facts.shape, mirrored)) * np.float32(scale))
    if form == "mean-std":
        return np.concatenate([mean, std])
    with np.errstate(divide="ignore"):
        logvar = np.maximum(2 * np.log(std), np.float32(LOWEST_LOGVAR))
    return np.concatenate([mean, logvar.astype(np.float32)])


def losses(latents: LatentSet, form: Form, *, scale: float) -> list[str]:
    """What is lost when latents take another form, in sentences; nothing if nothing is."""
    facts = latents.facts
    if form == facts.form:
        rescaled = form == "point" and facts.scaled_by != scale
        return ["values are multiplied by another scale, and rounded"] if rescaled else []
    if form == "point":
        return ["one latent is drawn from each posterior (seed 0): the posteriors are lost"]
    if facts.form == "point":
        return ["the source has latents without posteriors: their deviations are written as 0"]
    return ["deviations are computed from log-variances or back, and rounded: no bits to rely on"]


def _noise(i: int, shape: tuple[int, ...], mirrored: bool) -> np.ndarray:
    from diffit import draws  # needs torch, which processes that only read do without

    purpose = "mirrored latent" if mirrored else "latent"
    return draws.generator(0, i, purpose).standard_normal(shape, dtype=np.float32)
