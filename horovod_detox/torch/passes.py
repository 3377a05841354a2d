"""The end of a backward pass, where the optimizers exchange that it has brought gradients for.

All ranks run the same exchanges there, in the same order. So those take part, too, that the batch
of this rank has left out, if they were last run together with one that it has not; and all that
were postponed. These go on in the next collective of the script, too: who comes there lacks
gradients, which others may have. What a pass has brought counts when it ends: of one that failed
nothing is left.
"""

import sys
import threading
from collections.abc import Iterable, Mapping
from functools import partial
from types import FrameType
from typing import Protocol

import torch


class Exchange(Protocol):
    """What may take place at the end of a backward pass.

    Attributes:
        number: the same on every rank.
        ranks: who exchanges.
        together: the exchanges that took place at the end of the same pass, the last time.
    """

    number: int
    ranks: frozenset[int]
    together: "set[Exchange]"

    def count(self, parameters: Iterable[torch.Tensor]) -> bool:
        """Count the gradients of a pass; return whether a parameter needs no more in this step."""
        ...

    def end_pass(self) -> bool:
        """Exchange, unless that has to wait for another pass; return whether it took place."""
        ...


Brought = Mapping[Exchange, Iterable[torch.Tensor]]
"""The parameters of each exchange whose gradients a pass has brought."""

_brought: dict[int, dict[Exchange, set[torch.Tensor]]] = {}
"""By the number of the pass, which may be one that failed."""
_postponed: set[Exchange] = set()
NONE = -1
"""The number of no pass."""
_watched = NONE
"""The number of the latest pass whose end is waited for."""


def number() -> int:
    """Return the number of the current backward pass; NONE: there is none."""
    return torch._C._current_graph_task_id()


def is_inside_of_another() -> bool:
    """Return whether the current pass was begun by a node of another, as by a checkpoint."""
    frame: FrameType | None = sys._getframe()
    passes = 0
    while frame is not None:
        if frame.f_code is torch.autograd.function.BackwardCFunction.apply.__code__:
            return True
        passes += frame.f_code is torch.autograd.graph._engine_run_backward.__code__
        frame = frame.f_back
    return passes > 1


def touch(exchange: Exchange, parameter: torch.Tensor) -> None:
    """Let an exchange take part in the end of the current backward pass, if that ends well.

    Args:
        exchange: of the parameter.
        parameter: whose gradient the pass has brought.
    """
    _touch_all({exchange: [parameter]})


def _touch_all(brought: Brought, *_: object) -> None:
    now = _brought.setdefault(number(), {})
    for exchange, parameters in brought.items():
        now.setdefault(exchange, set()).update(parameters)
    _wait_for_the_end()


def has_touched(exchange: Exchange) -> bool:
    """Return whether a pass has brought gradients that do not count yet."""
    return any(exchange in brought for brought in [*_brought.values()])


def forget(exchange: Exchange) -> None:
    """Let an exchange that is over, or given up, take no part."""
    _forget_passes(exchange)
    _postponed.discard(exchange)


def _forget_passes(exchange: Exchange) -> None:
    """Forget what passes have brought for an exchange, also those that failed."""
    for last, brought in [*_brought.items()]:
        if brought.pop(exchange, None) is not None and not brought:
            _brought.pop(last, None)


def _wait_for_the_end() -> None:
    """Have `_end` called once at the end of the current pass, if it ends well."""
    global _watched
    if number() != _watched:
        _watched = number()
        torch.autograd.Variable._execution_engine.queue_callback(_end)


def _end() -> None:
    """Run the exchanges of this pass; if it is one inside of another, at the end of that."""
    brought = _brought.pop(number(), {})
    if (node := torch._C._current_autograd_node()) is not None:  # as of a reentrant checkpoint
        node.register_hook(partial(_touch_all, brought))
        return
    for exchange in brought:
        _forget_passes(exchange)
    due = {exchange for exchange, parameters in brought.items() if exchange.count(parameters)}
    if due:
        _run(_postponed.union(due, *(exchange.together for exchange in due)))


def postpone(exchange: Exchange) -> None:
    """Let an exchange take part in what comes next, whatever that is."""
    _postponed.add(exchange)


def any_postponed() -> bool:
    """Return whether an exchange waits, and this thread is the one to go on with it."""
    return bool(_postponed) and threading.current_thread() is threading.main_thread()


def meet(ranks: Iterable[int]) -> None:
    """Run the postponed exchanges among some ranks, which are about to enter a collective."""
    _run({exchange for exchange in _postponed if exchange.ranks.issubset(ranks)})


def _run(exchanges: Iterable[Exchange]) -> None:
    """Run exchanges; those that have to wait are postponed again."""
    done = set()
    for exchange in sorted(exchanges, key=lambda exchange: exchange.number):
        _postponed.discard(exchange)
        if exchange.end_pass():
            done.add(exchange)
            exchange.together = done
