"""What a module of this package says about one published code."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from diffit.codecs import CodecConfig
from diffit.convert.licences import Licence
from diffit.diffusion.formulation import FormulationConfig
from diffit.networks import Network, NetworkConfig
from diffit.nn.linear import Linear
from diffit.nn.linears import DenseConfig, LinearConfig
from diffit.sampling import SamplingConfig

Shapes = Mapping[str, tuple[int, ...]]
"""Name of each tensor of a checkpoint to its shape."""

Names = Mapping[str, str | tuple[str, ...]]
"""Our name of each tensor to the source's; several are joined along their first axis."""


class Published(NamedTuple):
    """How the published models of a family are used."""

    formulation: FormulationConfig
    sampling: SamplingConfig
    codec: CodecConfig


class Family(Protocol):
    """A published code whose files become models of this library.

    A new family is a module with these members, and a line in `diffit.convert.families`. Where the
    source stores the same tensor twice, it also has `copies(config)`, copy to original. Where its
    linear layers are not dense, it has `linear(state)`, the kind of them in a file, and
    `check_layers(layers)`, a ValueError for layers of a network's blocks that it does not have.
    """

    NETWORK: str
    """Name of our network."""
    SOURCE: str
    """The code, as certificates cite it."""
    LICENCE: Licence
    """Licence of the published weights."""

    def recognises(self, names: Collection[str]) -> bool:
        """Whether tensors of these names are of this family, whatever their shapes."""

    def infer(self, shapes: Shapes, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Constructor arguments from the shapes of the tensors.

        ``facts`` are arguments that the user or the file named, such as `num_heads`, `input_size`
        and `num_classes`; they win, and fill in what shapes do not tell. CheckpointError, naming
        the option, for what is still open.
        """

    def config(self, args: Mapping[str, Any]) -> NetworkConfig:
        """Our configuration for the source's constructor arguments; CheckpointError if wrong."""

    def arguments(self, config: Any) -> dict[str, Any]:
        """The inverse; ValueError for settings that the source does not know."""

    def names(self, config: Any) -> Names:
        """Where in the source each of our tensors is; ours that the source lacks are left out.

        Names that the network does not have do no harm.
        """

    def shapes(self, config: Any) -> Shapes:
        """Shapes in the source of tensors that we keep in another one, by our name."""

    def derived(self, config: Any) -> dict[str, Tensor]:
        """Tensors of the source that follow from the configuration: checked, then dropped."""

    def published(self, config: Any) -> Published:
        """How the published models of this shape are used."""

    def plain_forward(
        self, state: Mapping[str, Tensor], args: Mapping[str, Any], x: Tensor, time: Tensor,
        label: Tensor,
    ) -> Tensor:  # fmt: skip
        """The source's forward pass, written as its formulas stand, on the source's own tensors.

        It shares no code with our network: the certificate compares the two.

        Args:
            state: the tensors of the checkpoint, of any float dtype; computed in that of ``x``.
            args: the source's constructor arguments.
            x: (B, C, H, W), float64 for a certificate.
            time: (B,) float32, as the source counts it.
            label: (B,) int64, the number of classes for "no class"; zeros where there are none.

        Returns:
            The raw output, (B, C or 2 C, H, W), in the dtype of ``x``.
        """


def copies_of(family: Family, config: Any) -> dict[str, str]:
    """Tensors of the source that repeat another one, copy to original."""
    copies: dict[str, str] = family.copies(config) if hasattr(family, "copies") else {}
    return copies


def linear_of(family: Family, state: Mapping[str, Tensor]) -> LinearConfig:
    """What the linear layers in the blocks are that these tensors of the source belong to."""
    found: LinearConfig = family.linear(state) if hasattr(family, "linear") else DenseConfig()
    return found


def check_layers(name: str, family: Family, network: Network) -> None:
    """ValueError unless the source has linear layers like those in the network's blocks."""
    inside = [m for block in network.blocks() for m in block.modules() if hasattr(m, "in_features")]
    if hasattr(family, "check_layers"):
        family.check_layers(inside)
    elif other := [m for m in inside if type(m) not in (nn.Linear, Linear)]:
        raise ValueError(
            f"the code of {name} has dense linear layers alone, and this network has "
            f"{type(other[0]).__name__}"
        )
