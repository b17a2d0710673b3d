"""Named ways to draw: the published one, and the one that this library recommends."""

from typing import Literal, NamedTuple

from diffit.sampling import SamplingConfig

Name = Literal["official-256", "official-512", "recommended-256", "recommended-512"]


class Protocol(NamedTuple):
    """What a name stands for; every single option of the command line still replaces its part."""

    sampling: SamplingConfig
    labels: str
    """As `diffit sample --labels` takes them."""
    rounding: Literal["nearest", "down"]
    """How the codec makes 0..255 of drawn values."""
    side: int
    """Height and width of the images that it is meant for."""


_OFFICIAL = SamplingConfig(
    sampler="ancestral-learned", steps=250, levels="respaced", guidance=1.49, guidance_channels=3
)
_RECOMMENDED = SamplingConfig(sampler="dpmpp-2m", steps=30, guidance=1.37)
_COSINE = {"guidance_schedule": "power-cosine", "guidance_power": 4.0}

PROTOCOLS: dict[str, Protocol] = {
    # The release of arXiv:2312.02139: DDPM, 250 steps, learned variance; guidance on three of four
    # latent channels; labels at random; fractions of pixel values cut off.
    "official-256": Protocol(
        _OFFICIAL.changed(guidance=4.4, **_COSINE), labels="uniform", rounding="down", side=256
    ),
    "official-512": Protocol(_OFFICIAL, labels="uniform", rounding="down", side=512),
    # All channels are guided, with the scale 1 + 3/4 x that stands for 1 + x on three of four.
    "recommended-256": Protocol(
        _RECOMMENDED.changed(guidance=3.55, **_COSINE), labels="all", rounding="nearest", side=256
    ),
    "recommended-512": Protocol(_RECOMMENDED, labels="all", rounding="nearest", side=512),
}
