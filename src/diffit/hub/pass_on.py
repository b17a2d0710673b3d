"""Models are passed on: exported from runs, pushed to the hub, pulled from it."""

import shutil
from pathlib import Path

import torch
from huggingface_hub import HfApi, errors

from diffit.errors import CheckpointError
from diffit.fetch import UNREACHABLE, HubId, endpoint, in_folder_cache, open_repository
from diffit.hub.card import Card
from diffit.hub.find import fetch_folder
from diffit.hub.folder import (
    CARD,
    CONFIG,
    INDEX,
    SHARD_BYTES,
    HubConfig,
    read_folder,
    verify_folder,
    write_folder,
)
from diffit.model import Model, scales_of
from diffit.sampling import SamplingConfig
from diffit.sealed import appearing

STALE = ["*.safetensors", INDEX]
"""What a push removes from the repository, where the new model has no such file."""


def export(
    model: Model,
    folder: Path,
    *,
    card: Card,
    dtype: torch.dtype | None = None,
    name: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> HubConfig:
    """Write a loaded model as a hub-style folder; other arguments as in `write_folder`.

    Args:
        model: from `diffit.load`.
        folder: where it will be.
        card: what is said of it; to its provenance is added what the model knows of itself.
        dtype: precision of the stored weights but the scales of integer ones; by default as they
            are.
        name: what the card calls the model in commands.
        shard_bytes: largest file of weights.
    """
    known = ("weights", "images", "blake2b")
    origin = {key: model.provenance[key] for key in known if model.provenance.get(key) is not None}
    exact = scales_of(model.network)
    tensors = {
        key: tensor.to(dtype) if tensor.is_floating_point() and key not in exact else tensor
        for key, tensor in model.network.state_dict().items()
    }
    return write_folder(
        folder,
        config=model.config,
        sampling=model.sampling or SamplingConfig(),
        tensors=tensors,
        card=card.model_copy(update={"provenance": origin | card.provenance}),
        name=name,
        shard_bytes=shard_bytes,
    )


def push(folder: Path, repo: str, *, private: bool = False, message: str = "") -> str:
    """Upload a hub-style folder, verified before; the repository is made if there is none.

    Files of weights that the repository has and the folder has not are removed in the same commit.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: the folder is damaged or none, or the hub refuses.
    """
    content = read_folder(folder)
    verify_folder(folder, content)
    api = HfApi(endpoint=endpoint())
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=repo,
            commit_message=message or f"Upload {content.card.title or folder.name}",
            allow_patterns=[CONFIG, CARD, *content.files],
            delete_patterns=STALE,
        )
    except errors.LocalTokenNotFoundError:
        raise CheckpointError(_log_in(repo)) from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status in (401, 403):
            raise CheckpointError(_log_in(repo)) from None
        raise CheckpointError(f"{repo} could not be pushed: {_first_line(error)}") from None
    except errors.HFValidationError as error:
        raise CheckpointError(f"{repo!r} names no repository: {_first_line(error)}") from None
    except UNREACHABLE as error:
        raise CheckpointError(
            f"{endpoint()} cannot be reached ({_first_line(error)}); repeat the command to go on"
        ) from None
    return str(commit.commit_url)


def pull(source: HubId, out: Path) -> HubConfig:
    """Copy the hub-style folder of a repository to the new folder ``out``, verified."""
    if out.exists():
        raise CheckpointError(f"{out} exists already; name a new folder")
    folder = fetch_folder(source)
    content = read_folder(folder)
    verify_folder(folder, content)
    card = _card(source, folder)
    with appearing(out) as part:
        for name in (CONFIG, *content.files):
            shutil.copyfile(folder / name, part / name)
        if card is not None:
            shutil.copyfile(card, part / CARD)
    return content


def _card(source: HubId, folder: Path) -> Path | None:
    """The model card, which is not needed to draw and may be missing."""
    if in_folder_cache(source, CONFIG):
        return folder / CARD if (folder / CARD).is_file() else None
    return open_repository(source).get_card(CARD)


def _log_in(repo: str) -> str:
    return (
        f"{repo} could not be pushed: log in with `hf auth login`, or set HF_TOKEN, with a token "
        "that may write there"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
