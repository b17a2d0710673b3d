"""Checkpoints that two processes write together, in the background."""

import errno
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard

from diffit import sealed
from diffit.checkpoint import weights_in
from diffit.errors import CheckpointError
from diffit.sealed import DamagedError, read_state, read_tensors, sets_in, verify
from diffit.training.sharded import ShardWriter
from diffit.training.shards import fill_parts


def whole_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    network.register_buffer("count", torch.arange(4))
    return network


def expected_sets() -> dict[str, dict[str, torch.Tensor]]:
    """What the processes write, computed by one."""
    network = whole_network()
    weights = {key: t.detach().clone() for key, t in network.state_dict().items()}
    moments = {f"{key}/exp_avg": 2 * t for key, t in weights.items() if key != "count"}
    steps = {f"{key}/step": torch.tensor(4.0) for key in weights if key != "count"}
    return {"model": weights, "optimizer": {**moments, **steps}}


def sharded_sets() -> tuple[nn.Module, dict[str, dict[str, torch.Tensor]]]:
    network = whole_network()
    for layer in network:
        fully_shard(layer)
    fully_shard(network)
    weights = dict(network.state_dict())
    moments = {f"{key}/exp_avg": 2 * t.detach() for key, t in weights.items() if key != "count"}
    steps = {f"{key}/step": torch.tensor(4.0) for key in weights if key != "count"}
    return network, {"model": weights, "optimizer": {**moments, **steps}}


def in_two(work, *args) -> None:
    mp.spawn(_begin, (work, *args), nprocs=2, join=True)


def _begin(rank: int, work, folder: Path, *args) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        work(folder, *args)
    finally:
        dist.destroy_process_group()


def _write_change_read(folder: Path) -> None:
    network, sets = sharded_sets()
    writer = ShardWriter()
    told = folder / f"told-{dist.get_rank()}"
    meter = {"steps": 3, "level_loss": [1.0, 2.0]}
    writer.start(
        folder / "000000000012", config="model: {}\n", sets=sets,
        state={"images": 12, "default": "model", "meter": meter}, then=told.touch,
    )  # fmt: skip
    # The checkpoint holds what was there before.
    meter["steps"] += 1
    meter["level_loss"][0] += 1
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    assert writer.wait() == folder / "000000000012"
    assert writer.wait() is None
    writer.close()
    for name, kept in sets.items():
        fill_parts(kept, read_tensors(folder / "000000000012", name))
    wanted = expected_sets()
    for name, kept in sets.items():
        for key, tensor in kept.items():
            full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            assert torch.equal(full, wanted[name][key]), (name, key)


def _fail(folder: Path) -> None:
    _, sets = sharded_sets()
    writer = ShardWriter()
    if dist.get_rank() == 1:  # one process's disk is full while it writes
        writer_of = torch.distributed.checkpoint.HuggingFaceStorageWriter
        writer_of.write_data = _full
    where = {"config": "", "sets": sets, "state": {}, "then": lambda: None}
    writer.start(folder / "000000000012", **where)
    with pytest.raises(CheckpointError, match="No space left") as caught:
        writer.wait()
    assert caught.value.__cause__.errno == errno.ENOSPC
    if dist.get_rank() == 0:  # and of the first the name is taken by a file
        (folder / "taken").touch()
    dist.barrier()
    with pytest.raises(CheckpointError, match="could not be written"):
        writer.start(folder / "taken" / "000000000024", **where)
    writer.close()


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_two_processes_write_one_checkpoint_that_one_or_two_can_read(tmp_path):
    in_two(_write_change_read, tmp_path)

    folder = tmp_path / "000000000012"
    verify(folder)
    assert [path.name for path in tmp_path.glob("told-*")] == ["told-0"]
    assert read_state(folder)["meter"] == {"steps": 3, "level_loss": [1.0, 2.0]}
    assert sets_in(folder) == ["model", "optimizer"]
    assert weights_in(folder) == ["model"]
    for name, kept in expected_sets().items():
        found = read_tensors(folder, name)
        assert found.keys() == kept.keys()
        assert all(torch.equal(found[key], t) for key, t in kept.items())
    assert len(sealed.fingerprint(folder, "model")) == 128

    files = read_state(folder)["pieces"]["model"]
    assert len(files) == 2
    (folder / files[1]).unlink()
    read_tensors(folder, "optimizer")  # the other set is whole
    with pytest.raises(DamagedError, match="is missing"):
        read_tensors(folder, "model")


def test_what_hinders_one_process_all_of_them_hear_and_nothing_is_left(tmp_path):
    in_two(_fail, tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {"meet", "taken"}


@pytest.mark.parametrize(
    "pieces", [[], {"model": "a"}, {"model": ["b.safetensors"]}, {"model": [1]}]
)
def test_forged_lists_of_pieces_are_refused(tmp_path, pieces):
    sealed.write_sealed(tmp_path / "c", config="", tensors={}, state={})
    state = read_state(tmp_path / "c") | {"pieces": pieces}
    state["blake2b"] = sealed._digest(state)
    (tmp_path / "c" / sealed.STATE).write_text(json.dumps(state))

    with pytest.raises(DamagedError, match="lists no files"):
        sets_in(tmp_path / "c")
