"""What the methods have in common, so that a command can list, check and run them by name."""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from diffit.explain.attribution.relevance import need_vit
from diffit.explain.classifier import Classifier, need_attention

Need = Literal["attention", "gradient", "LRP"]


class Run(Protocol):
    """A method: (B, C, H, W) images in [-1, 1] and (B,) labels to one map for each image."""

    def __call__(
        self,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        *,
        create_graph: bool = False,
    ) -> Tensor:
        """(B, n) of tokens or (B, h, w) of pixels; differentiable with ``create_graph``."""


@dataclass(frozen=True)
class Method:
    """A method of explanation, and what a user has to know of it.

    Attributes:
        run: computes the maps; an image's map depends on no other image of the batch.
        title: what people call it.
        needs: attention that the classifier shows, gradients through it, relevance rules for its
            layers.
        reference: where it was published.
        gives: one number for each image token, or for each pixel the classifier looks at.
        signed: whether numbers may be negative: evidence against the class.
        by_class: whether the map depends on the label.
    """

    run: Run
    title: str
    needs: tuple[Need, ...]
    reference: str
    gives: Literal["tokens", "pixels"] = "tokens"
    signed: bool = False
    by_class: bool = True

    @property
    def certifiable(self) -> bool:
        """Whether the whole map enters a certificate: of a signed one only the positive part."""
        return not self.signed

    def check(self, classifier: Classifier) -> None:
        """UsageError unless the classifier has what the method needs."""
        if "LRP" in self.needs:
            need_vit(classifier)
        elif "attention" in self.needs:
            need_attention(classifier)
