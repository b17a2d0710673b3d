"""The residual networks for CIFAR of He et al. (arXiv:1512.03385, section 4.2): 20 to 1202 layers.

Three stages of 16, 32 and 64 channels; where a stage begins, the shortcut takes every other pixel
and fills the new channels with zeros (option A), so that it has no weights. Read from the files of
akamaster/pytorch_resnet_cifar10, with each batch norm folded into the convolution before it: in
evaluation the two are one affine map.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffit.convert.weights import read
from diffit.errors import CheckpointError
from diffit.explain.classifier import fit, normalise

WIDTHS = (16, 32, 64)
EPSILON = 1e-5
"""Of the batch norms, PyTorch's own default."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the published networks were trained with: ImageNet's, for images in [0, 1]."""
CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


_KNOWN = re.compile(
    r"linear\.(weight|bias)|(layer[123]\.\d+\.)?"
    r"(conv[12]\.weight|bn[12]\.(weight|bias|running_mean|running_var|num_batches_tracked))"
)


class Block(nn.Module):
    """relu(shortcut + conv(relu(conv(x))))."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == width else 2
        self.added = width - inputs
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=self.stride, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, width, H / stride, W / stride)."""
        shortcut = F.pad(
            x[..., :: self.stride, :: self.stride],
            (0, 0, 0, 0, self.added // 2, self.added - self.added // 2),
        )
        return F.relu(shortcut + self.conv2(F.relu(self.conv1(x))))


class CifarResNet(nn.Module):
    """A `Classifier` for images of 3 x 32 x 32; shows no attention.

    Args:
        depth: blocks of a stage: 3 in ResNet-20, 9 in ResNet-56.
        class_names: one for each class.
        name: what messages call it.
    """

    shape = (3, 32, 32)

    def __init__(self, depth: int, class_names: tuple[str, ...], *, name: str) -> None:
        super().__init__()
        self.name, self.class_names = name, class_names
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(inputs if i == 0 else width, width) for i in range(depth)))
            for inputs, width in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
        )
        self.linear = nn.Linear(WIDTHS[-1], len(class_names))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, any H, any W) images in [-1, 1] to (B, K) logits."""
        pixels = fit(images.to(self.linear.weight.dtype), self.shape)
        x = F.relu(self.conv1(normalise(pixels, MEAN, STD)))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def open_cifar_resnet(path: Path) -> CifarResNet:
    """The network in a `.th` file, frozen, in evaluation mode, on the CPU.

    CheckpointError for a file of anything else, a damaged one, and one that could run code.
    """
    tensors = read(path).tensors
    stages = {m[1] for name in tensors if (m := re.match(r"layer1\.(\d+)\.conv1\.weight", name))}
    head = tensors.get("linear.weight")
    try:
        if not stages or head is None or head.ndim != 2:
            raise ValueError("it has no such layers")
        names = CIFAR10 if len(head) == len(CIFAR10) else tuple(map(str, range(len(head))))
        with torch.device("meta"):
            network = CifarResNet(len(stages), names, name=path.name)
        network.load_state_dict(folded(tensors), assign=True)
    except (KeyError, ValueError, RuntimeError):
        raise CheckpointError(
            f"{path} is no ResNet for CIFAR with shortcuts of option A, such as "
            "resnet20-12fca82f.th of akamaster/pytorch_resnet_cifar10; name a folder of a "
            "classifier, or one of these files"
        ) from None
    return network.eval().requires_grad_(False)


def folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors by our names, without batch norms; KeyError if one is missing.

    ValueError for a tensor that these networks do not have, such as a shortcut's weight.
    """
    found = {name: tensors[name].float() for name in ("linear.weight", "linear.bias")}
    for name, weight in tensors.items():
        if not _KNOWN.fullmatch(name):
            raise ValueError(name)
        match = re.fullmatch(r"(?:layer([123])\.(\d+)\.)?conv([12])\.weight", name)
        if match is None:
            continue
        norm = name.replace("conv", "bn").removesuffix("weight")
        scale, shift, mean, variance = (
            tensors[norm + part].double()
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / (variance + EPSILON).sqrt()
        own = f"stages.{int(match[1]) - 1}.{match[2]}.conv{match[3]}" if match[1] else "conv1"
        found[f"{own}.weight"] = (weight.double() * scale[:, None, None, None]).float()
        found[f"{own}.bias"] = (shift - mean * scale).float()
    return found
