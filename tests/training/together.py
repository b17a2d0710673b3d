"""What `test_parallel_training.py` runs in 2 and 3 processes: `python together.py JOB FOLDER`."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from diffit import distributed
from diffit.errors import DataError, DiffitError
from diffit.training import loop
from diffit.training.loop import train
from tiny import tiny_run

FSDP = {"kind": "fsdp"}


def go(folder, images=160, **train_settings):
    config = tiny_run(images=images, **{"keep_last": 9, **train_settings})
    return train(config, folder, quiet=True, resume=folder.exists())


def poison(*numbers):
    """Make these images of a run something that is not a number, where they are drawn."""
    draw = loop.draw_inputs

    def poisoned(batch, model, **options):
        inputs = draw(batch, model, **options)
        for place, number in enumerate(inputs.number.tolist()):
            if number in numbers:
                inputs.clean[place, 0, 0, 0] = float("nan")
        return inputs

    loop.draw_inputs = poisoned
    return draw


def said(call):
    """How a call ends: the sentence of a refusal, or the exit code of who leaves it to others."""
    try:
        call()
    except DiffitError as error:
        return str(error)
    except SystemExit as ended:
        return ended.code
    return None


def at_step(images, act):
    """Do something in this process when a run has seen so many images."""
    step = loop.take_step

    def stepping(run, objective, inputs):
        if run.state.images == images:
            act()
        return step(run, objective, inputs)

    loop.take_step = stepping


def without_last(run, copy):
    """A copy of a run as if it had been killed after its checkpoint of 128 images."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / f"{160:012d}")


def messages():
    """What the functions of `diffit.distributed` give in each process."""
    me = distributed.rank()

    def refuse():
        with distributed.agreed():
            if me == 1:
                raise DataError("the second cannot")

    own = torch.arange(2.0 + me, dtype=torch.float64)
    return {
        "gather": distributed.gather({"é": me}),
        "sum": distributed.sum_over_ranks(torch.tensor([1.0, me])).tolist(),
        "any": [distributed.any_rank(me == 1), distributed.any_rank(False)],
        "numbers": [row.tolist() for row in distributed.gather_numbers(own, most=4)],
        "of_first": distributed.of_first(lambda: f"from {me}"),
        "refused": said(refuse),
    }


def two(folder):
    """Straight runs, a chain between DDP and FSDP2, trouble, refusals; a death at the end."""
    told = messages()
    go(folder / "ddp")
    go(folder / "fsdp", parallel=FSDP)
    if distributed.is_first():
        without_last(folder / "fsdp", folder / "again")
    distributed.barrier()
    go(folder / "again", parallel=FSDP)
    go(folder / "hybrid", 32, parallel={**FSDP, "shard": "hybrid"})
    go(folder / "chain", 96)  # after one process
    for images, parallel in ((48, {}), (112, FSDP), (160, {})):
        go(folder / "mixed", images, parallel=parallel)
    go(folder / "whole", 64, micro_batch=None)
    go(folder / "clipped", 64, clip=1e-3, parallel=FSDP)
    go(folder / "checkpointed", 64, activation_checkpointing=True, parallel=FSDP)
    draw = poison(37, 41)
    go(folder / "poisoned", 64)
    go(folder / "poisoned-fsdp", 64, parallel=FSDP)
    told["diverged"] = said(lambda: go(folder / "diverged", 64, max_bad_steps=1))
    loop.draw_inputs = draw
    told["batch"] = said(lambda: go(folder / "one", batch=1, micro_batch=None))
    told["odd"] = said(lambda: go(folder / "odd", batch=15, parallel=FSDP))
    told["taken"] = said(
        lambda: train(tiny_run(), folder / "ddp", quiet=True)  # a new run where one is
    )
    told["offload"] = said(lambda: go(folder / "off", parallel={**FSDP, "offload": True}))
    (folder / f"two-{distributed.rank()}.json").write_text(json.dumps(told))
    if distributed.rank() == 1:
        at_step(32, lambda: os.kill(os.getpid(), signal.SIGKILL))
    try:
        go(folder / "widow")
    except DiffitError as error:
        (folder / "widow.txt").write_text(str(error))


def three(folder):
    """A straight run, a further link of the chain, and a signal that one process alone receives."""
    go(folder / "three")
    go(folder / "chain", 144)
    if distributed.rank() == 2:
        at_step(48, lambda: os.kill(os.getpid(), signal.SIGTERM))
    outcome = go(folder / "told")
    told = [outcome.reason, outcome.images]
    (folder / f"three-{distributed.rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    distributed.join()
    {"two": two, "three": three}[sys.argv[1]](Path(sys.argv[2]))
