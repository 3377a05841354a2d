"""What keeps ranks together in `fit`: metrics that are alike on all, and one decision to stop."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import keras

from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.presence import Presence
from horovod_detox.exchange.sharing import share
from horovod_detox.exchange.waits import ExchangeTimeout, waits
from horovod_detox.tensorflow.context import context
from horovod_detox.tensorflow.metrics import averages, numbers
from horovod_detox.vote.groups import Groups

log = logging.getLogger("horovod_detox")

DECIDING = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.ReduceLROnPlateau,
)
"""Callbacks of Keras that decide something by an epoch's metrics."""


@dataclass(frozen=True)
class Team:
    """The ranks that train a model together.

    Attributes:
        process_set: of Horovod.
        groups: of its ranks, which are counted from 0.
        presence: of the optimizer's engine.
        name: tells the team from all others.
        told: warnings that were given and are not to be given again.
        scrub: compares what the ranks hold alike, and heals it.
    """

    process_set: Any
    groups: Groups
    presence: Presence
    name: object
    told: set[str] = field(default_factory=set, compare=False)
    scrub: Callable[[], None] = field(default=lambda: None, compare=False)

    @cached_property
    def _collectives(self) -> Collectives:
        return context.collectives(self.name, self.process_set)

    def share(self, name: str, value: Any) -> list[Any]:
        """Gather a JSON value from every rank."""
        return share(self._collectives, name, value)

    @contextmanager
    def meeting_at_end(self) -> Iterator[None]:
        """Come together at the end of an epoch, which some ranks may have reached before others."""
        ranks = self.process_set.ranks if self.process_set.process_set_id else ()
        try:
            with waits.waiting("the end of an epoch", ranks):
                yield
        except ExchangeTimeout as error:
            more = (
                "This rank is at the end of an epoch: do all ranks have equally many batches? "
                "Deal the data evenly, or give fit the same steps_per_epoch on all ranks"
            )
            error.args = (f"{error}. {more}",)
            raise

    def names(self, ranks: Iterable[int]) -> list[int]:
        """Return what some ranks of the set are called in the job."""
        return [self.process_set.ranks[rank] for rank in sorted(ranks)]

    def warn(self, text: str) -> None:
        """Say something once, on the lowest rank."""
        if self.process_set.rank() == 0 and text not in self.told:
            self.told.add(text)
            log.warning("%s", text)


class AgreeFirst(keras.callbacks.Callback):
    """Sees to it, before all other callbacks, that ranks have the same epochs.

    They must have as many batches. Metrics are averaged over the groups if a callback of some rank
    decides by them, or averages them itself.

    Args:
        team: the ranks.
        others: the callbacks of this rank.
    """

    params: Any

    def __init__(self, team: Team, others: Iterable[Any]) -> None:
        super().__init__()
        self._team = team
        self._others = list(others)
        self._averages = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Find out, with all ranks, how many batches there are, and whether metrics count.

        Raises:
            ValueError: on every rank, when some have more batches in an epoch than others.
        """
        deciding = sorted({type(c).__name__ for c in self._others if isinstance(c, DECIDING)})
        asked_for = any(getattr(c, "averages_metrics", False) for c in self._others)
        steps = None if self.params.get("steps") is None else int(self.params["steps"])
        facts = {"steps": steps, "deciding": deciding, "averaging": asked_for}
        everyones = self._team.share("beginning", facts)
        _check_equal([theirs["steps"] for theirs in everyones], self._team)
        averaging = any(theirs["averaging"] for theirs in everyones)
        deciding = sorted({name for theirs in everyones for name in theirs["deciding"]})
        self._averages = averaging or bool(deciding)
        if deciding and not averaging:
            self._team.warn(
                f"{', '.join(deciding)}: the epoch's metrics are averaged over the groups before "
                "any callback sees them, so that all ranks decide alike"
            )

    def on_train_end(self, logs: Any = None) -> None:
        """Confirm what was saved at the end of the last epoch."""
        self._scrub()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Replace the metrics that all ranks have; heal what is saved now."""
        self._scrub()
        if self._averages and logs is not None:
            with self._team.meeting_at_end():
                everyones = self._team.share("metrics", numbers(logs))
            logs.update(averages(everyones, self._team.groups))

    def _scrub(self) -> None:
        with self._team.meeting_at_end():
            self._team.scrub()


def _check_equal(steps: Sequence[int | None], team: Team) -> None:
    """Refuse numbers of batches, where they are known, that differ between ranks."""
    ranks: dict[int, list[int]] = {}
    for rank, number in enumerate(steps):
        if number is not None:
            ranks.setdefault(number, []).append(rank)
    if len(ranks) > 1:
        found = ", ".join(f"{n} on ranks {team.names(ranks[n])}" for n in sorted(ranks))
        raise ValueError(
            f"ranks have different numbers of batches in an epoch: {found}. They would wait for "
            "each other at its end: deal the data evenly, as hvd.shard does, or give fit the "
            "same steps_per_epoch on all ranks, and data that repeats"
        )


class StopTogether(keras.callbacks.Callback):
    """Ends the training on all ranks when most groups want it, and else on none.

    It comes after all callbacks that may set `stop_training`. What a rank wants after a batch
    travels with the next exchange, so that all stop one batch later; at the end of an epoch there
    is a small round of its own.
    """

    model: Any

    def __init__(self, team: Team) -> None:
        super().__init__()
        self._team = team
        self._stops = False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop if most groups have wanted it before this batch."""
        self._note()
        presence = self._team.presence
        heard, presence.stopping = presence.stopping, set()
        self._decide(heard)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Ask all ranks. A wish does not outlast its epoch."""
        if self._stops:
            return
        self._note()
        with self._team.meeting_at_end():
            everyones = self._team.share("stop", self._team.presence.wants_to_stop)
        self._decide([rank for rank, wants in enumerate(everyones) if wants])
        self._team.presence.forget_wishes()

    def _note(self) -> None:
        """Train on for now, whatever this rank wants."""
        if self.model.stop_training and not self._stops:
            self._team.presence.wants_to_stop, self.model.stop_training = True, False

    def _decide(self, wanting: Collection[int]) -> None:
        if self._team.groups.are_mostly_of(wanting):
            self._stops = self.model.stop_training = True
        elif wanting and not self._stops:
            self._team.warn(
                f"ranks {self._team.names(wanting)} set model.stop_training, but most ranks of "
                "most groups did not: all ranks go on training. Give all ranks the same "
                "callbacks, which decide by what is the same on all ranks"
            )
