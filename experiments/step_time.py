"""The time of a step, as a job with a parameter server has it, from parts measured by turns."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from horovod_detox.config import Plan
from horovod_detox.exchange.reference import aggregate_copies
from horovod_detox.lab.datasets import CLASSES, train_and_test
from horovod_detox.lab.models import MODELS
from horovod_detox.lab.run import Run
from horovod_detox.packing.layout import Layout

ROUNDS = 15

Action = Callable[[], Any]


def step_times(runs: Sequence[Run], rounds: int = ROUNDS) -> list[dict[str, float]]:
    """Return for each run the milliseconds that one rank's gradient and the aggregation take.

    Times are those of the processor for this process alone, medians of rounds in which all runs
    take turns; a first round is dropped.
    """
    actions: list[dict[str, Action]] = []
    for run in runs:
        plan = run.detox.plan(run.ranks)
        actions.append(
            {"gradient_ms": gradient(run, plan), "aggregation_ms": aggregation(run, plan)}
        )
    measured = [
        [{name: _seconds(act) for name, act in each.items()} for each in actions]
        for _ in range(1 + rounds)
    ][1:]
    return [
        {name: round(1000 * median(each[i][name] for each in measured), 2) for name in names}
        for i, names in enumerate(actions)
    ]


def gradient(run: Run, plan: Plan) -> Action:
    """Return what computes the gradient of one rank: that of its group's batch."""
    device = torch.device("cpu" if run.device == "cpu" or not torch.cuda.is_available() else "cuda")
    train_set, _ = train_and_test(run.dataset, Path(run.data) if run.data else None)
    images, labels = next(iter(DataLoader(train_set, run.group_batch(len(plan.groups)))))
    model, images = _model(run).to(device), images.to(device)
    if run.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)

    def compute() -> None:
        cross_entropy(model(images), labels.to(device)).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return compute


def aggregation(run: Run, plan: Plan) -> Action:
    """Return what aggregates the gradients of all ranks, in main memory.

    A plain rule is spared what the vote does. Every copy of DETOX lies in memory of its own, and is
    examined; in the simulation, equal ones are examined once.
    """
    d = sum(parameter.numel() for parameter in _model(run).parameters())
    groups = plan.groups
    distinct = np.random.default_rng(0).standard_normal((len(groups), d), dtype=np.float32)
    if run.detox.group_size == 1:
        return partial(plan.rule, distinct)
    layout = Layout((("gradient", (d,), "float32"),))
    copies = [layout.pack([distinct[groups.of(rank)]]) for rank in range(run.ranks)]
    return partial(aggregate_copies, plan, layout.buffers, copies)


def _model(run: Run) -> torch.nn.Module:
    return MODELS[run.model_name](CLASSES[run.dataset])


def _seconds(act: Action) -> float:
    start = time.process_time()
    act()
    return time.process_time() - start
