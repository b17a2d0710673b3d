"""What the published weights may be used for, as their owners say."""

from diffit.config import Settings


class Licence(Settings):
    """Licence of a set of weights."""

    name: str
    """Short name, such as `cc-by-nc-4.0`; `unknown` if nobody said."""
    url: str = ""
    """Where its text is."""
    note: str = ""
    """What it restricts, or what is unclear about it, in one sentence without a stop."""


NVIDIA = Licence(
    name="cc-by-nc-sa-4.0",
    url="https://creativecommons.org/licenses/by-nc-sa/4.0/",
    note="for non-commercial use only, what is made from it under the same licence; the model card "
    "names nsclv1 instead",
)
META = Licence(
    name="cc-by-nc-4.0",
    url="https://creativecommons.org/licenses/by-nc/4.0/",
    note="for non-commercial use only",
)
UVIT = Licence(
    name="mit",
    url="https://github.com/baofff/U-ViT/blob/main/LICENSE",
    note="the licence of the code, beside which nothing is said of the weights",
)
DIMR = Licence(
    name="other",
    url="https://huggingface.co/QHL067/DiMR",
    note="for research alone, says their page, which names no licence; the code is under "
    "apache-2.0",
)
TERDIT = Licence(
    name="mit",
    url="https://github.com/Lucky-Lance/TerDiT/blob/main/LICENSE",
    note="under the licence of their code, whose page says nothing of the weights themselves",
)
UNKNOWN = Licence(
    name="unknown",
    note="nobody said what these weights may be used for; ask those who trained them",
)
