"""DINOv2 as a feature extractor, through the model class of transformers (arXiv:2304.07193).

FD-DINOv2 (arXiv:2306.04675) is the Frechet distance over the class token of ViT-L/14 after its last
norm, 1024 numbers, of images resized to 224.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diffit.errors import CheckpointError, UsageError
from diffit.fetch import file_sha256, first_of, parse_id

if TYPE_CHECKING:
    from transformers import Dinov2Model

LARGE = "facebook/dinov2-large"
STANDARD = (1024, 24)
"""Width and depth of ViT-L/14, the only one whose distance is called FD-DINOv2."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def load_dino(source: str, *, download: bool) -> tuple["Dinov2Model", str]:
    """The network of a folder or hub id, and the sha256 of its weights.

    UsageError or CheckpointError says what is missing. Without ``download`` a hub id is looked up
    on this machine alone.
    """
    model_class = _model_class()
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _from_hub(source, download=download)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; name a folder with DINOv2's files")
    try:
        network = model_class.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, attn_implementation="sdpa"
        )
    except Exception as error:  # the library raises whatever its parts do
        first = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{folder} cannot be read as DINOv2: {first}") from None
    return network.eval().requires_grad_(False), file_sha256(folder / WEIGHTS)


def class_token(network: Any, images: Tensor) -> Tensor:
    """(B, 3, 224, 224) to (B, width): the class token after the last norm."""
    token: Tensor = network(pixel_values=images).pooler_output
    return token


def name_of(network: Any) -> tuple[str, str]:
    """What the features and the Frechet distance over them are called."""
    shape = (network.config.hidden_size, network.config.num_hidden_layers)
    if shape == STANDARD:
        return "dinov2", "FD-DINOv2"
    name = f"dinov2-{shape[0]}x{shape[1]}"
    return name, f"FD ({name})"


def _model_class() -> Any:
    try:
        from transformers import Dinov2Model
    except ImportError:
        raise UsageError(
            "DINOv2 needs transformers: pip install 'diffit-torch[classifiers]'"
        ) from None
    return Dinov2Model


def _from_hub(source: str, *, download: bool) -> Path:
    """The folder of a hub id's files, in a cache of this machine."""
    place = parse_id(source)
    if place is None:
        raise UsageError(f"--dino {source} is no folder and no hub id such as {LARGE}")
    files = [
        first_of(place, [name], way_out="name a folder of it with --dino", download=download)
        for name in (CONFIG, WEIGHTS)
    ]
    if None in files and not download:
        raise UsageError(
            f"DINOv2's weights ({source}) are not on this machine; add --download to fetch them "
            "(1.2 GB), or name a folder of them with --dino"
        )
    folders = {file.parent for file in files if file is not None}
    if None in files or len(folders) > 1:
        raise CheckpointError(f"{source} has no {CONFIG} with {WEIGHTS}; name a folder with --dino")
    return folders.pop()
