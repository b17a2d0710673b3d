"""What `diffit data inspect` says of latents."""

from collections import Counter
from typing import Any, NamedTuple

from diffit.data.latent_range import SAMPLE, pixels_mistaken, scale_mistaken, statistics
from diffit.data.latent_writer import verify
from diffit.data.latents import LatentSet
from diffit.data.layouts.convert import WORDS


class Description(NamedTuple):
    """Facts by name, counts of the classes, and what the owner should know."""

    facts: dict[str, Any]
    classes: dict[str, int]
    notes: list[str]


def describe(latents: LatentSet, layout: str) -> Description:
    """Look at a set of latents; a cache of this library is read whole, for its checksums."""
    facts, found = latents.facts, statistics(latents)
    notes = [sentence for sentence in verify(latents) if sentence]
    said: dict[str, Any] = {
        "path": str(latents.path),
        "layout": layout,
        "images": facts.images,
        "shape": list(facts.shape),
        "form": facts.form,
        "dtype": facts.dtype.name,
        "mirrored": facts.mirrored,
        "pixels": facts.pixels,
        "scaled_by": facts.scaled_by,
        "channel_mean": list(found.mean),
        "channel_std": list(found.std),
        "lowest": found.low,
        "highest": found.high,
        "codec": latents.codec,
        "source": latents.index.source if latents.index else "",
    }
    if latents.index is None and facts.images > SAMPLE:
        notes.append(f"statistics are those of {SAMPLE} latents, evenly spread")
    if pixels_mistaken(found, facts.pixels):
        other = "0..1" if facts.pixels == "-1..1" else "-1..1"
        notes.append(
            f"the channel means are those of pixels in {WORDS[other]}, not in "
            f"{WORDS[facts.pixels]} as this layout promises"
        )
    if latents.codec is not None:
        scale = latents.codec.get("scale") or 1.0
        said["scaled_std"] = scaled_std(found.std, scale)
        sentence = scale_mistaken(found, scale)
        if sentence:
            notes.append(sentence)
    counts = Counter(latents.label(i) for i in range(facts.images)) if latents.classes else {}
    return Description(said, {name: counts[i] for i, name in enumerate(latents.classes)}, notes)


def scaled_std(std: tuple[float, ...], scale: Any) -> list[float]:
    """Standard deviations after scaling, for each channel."""
    scales = scale if isinstance(scale, (list, tuple)) else [scale] * len(std)
    return [value * float(factor) for value, factor in zip(std, scales, strict=True)]
