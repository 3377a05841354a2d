"""The trial: a gradient that all ranks compute from one batch before a job, twice.

What a framework has to do for it is a `Subject`.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Protocol

import numpy as np

from horovod_detox.determinism.conditions import Conditions
from horovod_detox.determinism.verdict import PreflightReport, Trial, judge_trials
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.sharing import share
from horovod_detox.packing.layout import WORD
from horovod_detox.vote.fingerprint import digest
from horovod_detox.vote.groups import Groups

SEED = 0
"""Of the random state with which the gradient is computed on every rank."""

Piece = tuple[str, Sequence[int], np.ndarray]
"""An array on the wire: its dtype as its framework calls it, its shape and its bytes."""


Named = tuple[str, np.ndarray]
"""The name of a tensor, and its bytes."""


class Subject(Protocol):
    """A model, a batch and a loss, in the arrays of one framework.

    Attributes:
        batch: the tensors of this rank's batch.
        state: what the model keeps beside its weights, as BatchNorm's statistics.
    """

    batch: list[Piece]
    state: list[Piece]

    def conditions(self) -> Conditions:
        """Return what may change bits in this process."""
        ...

    def weights(self) -> Iterator[Named]:
        """Yield the bytes of each weight, in the order of the model."""
        ...

    def gradients(self, batch: Sequence[Piece], state: Sequence[Piece]) -> Iterator[Named]:
        """Yield the bytes of each weight's gradient, computed with this batch and state.

        It leaves the model as it was. Python and NumPy are seeded; the framework it must seed.
        """
        ...


class RankFailed(RuntimeError):
    """Another rank could not compute the gradient."""


def try_out(collectives: Collectives, groups: Groups | None, subject: Subject) -> PreflightReport:
    """Let all ranks compute the gradient of rank 0's batch with rank 0's state, and compare.

    Args:
        collectives: of all ranks.
        groups: whose members must compute the same bits; None: all must.
        subject: of this rank.

    Raises:
        RankFailed: where another rank could not compute the gradient.
        Exception: that of this rank.
    """
    batch = from_first_rank(collectives, "batch", subject.batch)
    state = from_first_rank(collectives, "state", subject.state)

    def gradients() -> dict[str, str]:
        with seeded():
            return _digests(subject.gradients(batch, state))

    def trial() -> Trial:
        return Trial(
            dict(subject.conditions()), _digests(subject.weights()), gradients(), gradients()
        )

    return compare_trials(collectives, groups, trial)


def from_first_rank(collectives: Collectives, name: str, pieces: Sequence[Piece]) -> list[Piece]:
    """Return the pieces of rank 0, given those of this rank.

    Raises:
        ValueError: on every rank, when some rank does not have as many.
    """
    described = [(dtype, list(shape)) for dtype, shape, _ in pieces]
    everyone = share(collectives, f"{name}.pieces", described)
    counts = [len(theirs) for theirs in everyone]
    if len(set(counts)) > 1:
        raise ValueError(
            f"the {name} has {counts} tensors, by rank: give all ranks one of the same structure"
        )
    mine = b"".join(data.tobytes() for _, _, data in pieces) if collectives.rank == 0 else b""
    lengths = share(collectives, f"{name}.lengths", [data.nbytes for _, _, data in pieces])[0]
    words = np.frombuffer(mine + bytes(-len(mine) % WORD), np.int64)
    received = collectives.allgather(name, words).wait().view(np.uint8)
    data = np.split(received, np.cumsum(lengths))[: len(lengths)]
    return [(*about, part) for about, part in zip(everyone[0], data, strict=True)]


def compare_trials(
    collectives: Collectives, groups: Groups | None, trial: Callable[[], Trial]
) -> PreflightReport:
    """Let all ranks try, and tell from their trials whether they compute the same bits.

    Args:
        collectives: of all ranks.
        groups: whose members must.
        trial: of this rank.

    Raises:
        RankFailed: where the trial of another rank has failed.
        Exception: that of this rank.
    """
    try:
        mine, failure = asdict(trial()), None
    except Exception as error:
        mine, failure = {"error": f"{type(error).__name__}: {error}"}, error
    everyone = share(collectives, "trials", mine)
    if failure is not None:
        raise failure
    for rank, theirs in enumerate(everyone):
        if "error" in theirs:
            raise RankFailed(f"rank {rank} could not compute the gradient: {theirs['error']}")
    return judge_trials([Trial(**theirs) for theirs in everyone], groups)


def _digests(arrays: Iterator[Named]) -> dict[str, str]:
    """Return the fingerprint of each array's bytes, as text; one array at a time is kept."""
    return {name: digest(data).tobytes().hex() for name, data in arrays}


@contextmanager
def seeded() -> Iterator[None]:
    """Seed python and NumPy alike on every rank; their random state is as before afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(SEED)
    np.random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
