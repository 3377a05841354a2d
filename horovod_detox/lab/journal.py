"""A run from its beginning, or from where it was interrupted, to its end; one JSON line a step."""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from horovod_detox.exchange.step import NoMajority
from horovod_detox.lab.run import Run
from horovod_detox.lab.simulation import Simulation

SAVE_SECONDS = 30.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Journal:
    """What was noted of a run.

    Attributes:
        run: its description.
        rows: one for each step: the fields of `simulation.StepRecord`; where the model was tested,
            its `accuracy` after the step; where the run ended before its last step, why: `stopped`.
    """

    run: Row
    rows: list[Row]

    @property
    def stopped(self) -> str | None:
        """Return why the run ended before its last step; None: it did not."""
        return self.rows[-1].get("stopped") if self.rows else None

    @property
    def accuracy(self) -> float:
        """Return that of the last test."""
        return next(row["accuracy"] for row in reversed(self.rows) if "accuracy" in row)

    @property
    def dissents(self) -> dict[int, int]:
        """Return in how many steps each rank was outvoted."""
        counts = Counter(rank for row in self.rows for rank in row.get("dissenters", ()))
        return dict(sorted(counts.items()))


def train(
    run: Run,
    log: Path | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    save_seconds: float = SAVE_SECONDS,
) -> Journal:
    """Train as the run describes; with a log of the same run, go on where that ends.

    Args:
        run: the description.
        log: a file for one line per step; beside it, until the end, lies the state to go on from.
        progress: is passed the steps to come, and yields them.
        save_seconds: between two states.

    Raises:
        ValueError: when the settings do not fit, or the log is another run's.
    """
    description, rows = run.describe(), []
    if log is not None and log.exists():
        journal = read_log(log)
        _check_same(log, journal.run, description)
        rows = journal.rows
        if rows and (journal.stopped or len(rows) == run.steps):
            return journal
    simulation = Simulation(run)
    state = None if log is None else log.with_name(f"{log.name}.state")
    if state is not None and rows and state.exists():
        simulation.load_state(torch.load(state, weights_only=True))
    rows = rows[: simulation.steps_done]
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with open(log or os.devnull, "w") as file:
        _write(file, {"run": description}, *rows)
        saved = time.monotonic()
        for _ in progress(range(simulation.steps_done, run.steps)):
            rows.append(_step(simulation))
            _write(file, rows[-1])
            if "stopped" in rows[-1]:
                break
            if state is not None and time.monotonic() - saved > save_seconds:
                _save(simulation, state)
                saved = time.monotonic()
    if state is not None:
        state.unlink(missing_ok=True)
    return Journal(description, rows)


def read_log(path: Path) -> Journal:
    """Read a log; a last line that was not completed does not count.

    Raises:
        ValueError: when the file is not a log.
    """
    lines = path.read_text().split("\n")
    try:
        first, *rows = [json.loads(line) for line in lines[:-1]]
        return Journal(first["run"], rows)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not the log of a run") from None


def _step(simulation: Simulation) -> Row:
    """Train one step and return what is noted of it; test the model when it is time."""
    run, step = simulation.run, simulation.steps_done
    try:
        row: Row = json.loads(json.dumps(asdict(simulation.step())))  # as it is read again
        if not math.isfinite(row["loss"]):
            row |= {"loss": None, "stopped": f"step {step}: the loss is not finite"}
    except NoMajority as error:
        row = {"step": step, "stopped": f"step {step}: {error}"}
    if "stopped" in row or step + 1 == run.steps or (step + 1) % run.evaluate_every == 0:
        row["accuracy"] = simulation.accuracy()
    return row


def _write(file: TextIO, *rows: Row) -> None:
    file.writelines(json.dumps(row) + "\n" for row in rows)
    file.flush()


def _save(simulation: Simulation, path: Path) -> None:
    """Save the state so that an interruption leaves the old one or the new one."""
    new = path.with_name(f"{path.name}.new")
    torch.save(simulation.state(), new)
    os.replace(new, path)


def _check_same(log: Path, noted: Row, wanted: Row) -> None:
    """Raise unless a log is that of the run that is wanted."""
    wanted = json.loads(json.dumps(wanted))
    for name in [*wanted, *(noted.keys() - wanted.keys())]:
        if noted.get(name) != wanted.get(name):
            raise ValueError(
                f"{log} is the log of another run: its {name} is {noted.get(name)}, "
                f"not {wanted.get(name)}; choose another file, or remove it"
            )
