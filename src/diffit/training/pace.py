"""How many images a second networks learn from, measured in turns, so that all are disturbed alike.

On the CPU the clock is the processor time of this process, which neighbours do not touch.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch

from diffit.data import Dataset
from diffit.training.batches import open_loader
from diffit.training.inputs import draw_inputs
from diffit.training.prepare import build_objective
from diffit.training.settings import RunConfig
from diffit.training.state import fresh_state
from diffit.training.step import arithmetic

ROUNDS = 7
"""Steps of each network; the median counts, and one more before them does not."""


def measure_pace(
    configs: dict[str, RunConfig], dataset: Dataset, device: torch.device
) -> dict[str, float]:
    """Images a second of each run's training step: draws, loss, gradients, optimiser, averages."""
    train = next(iter(configs.values())).train
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    with arithmetic(device, tf32=train.tf32, threads=train.threads), ExitStack() as stack:
        steps = {name: _steps(config, dataset, device, stack) for name, config in configs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in configs}
        for turn in range(ROUNDS + 1):
            for name, step in steps.items():
                started = clock()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn:
                    seconds[name].append(clock() - started)
    return {name: train.batch / statistics.median(each) for name, each in seconds.items()}


def _steps(
    config: RunConfig, dataset: Dataset, device: torch.device, stack: ExitStack
) -> Callable[[], None]:
    """A function that takes a step of a run that nobody keeps."""
    state = fresh_state(config, device)
    objective = build_objective(state, config)
    loader: Iterator = stack.enter_context(open_loader(config, dataset, start=0))

    def step() -> None:
        inputs = draw_inputs(next(loader), state.model, seed=config.train.seed)
        gradients = objective.gradients(inputs, micro_batch=config.train.micro_batch)
        objective.clip(gradients.norm, config.train.clip)
        state.optimizer.step()
        state.averages.update(batch=config.train.batch, after=config.train.batch)

    return step
