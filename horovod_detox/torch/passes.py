"""The end of a backward pass, where the optimizers exchange that it has brought gradients for.

All ranks run the same exchanges there, in the same order. So those take part, too, that the batch
of this rank has left out, if they were last run together with one that it has not; and all that
were postponed. These go on in the next collective of the script, too: who comes there lacks
gradients, which others may have.
"""

import threading
from collections.abc import Iterable
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

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

    def end_pass(self) -> bool:
        """Exchange, unless that has to wait for another pass; return whether it took place."""
        ...


_touched: WeakKeyDictionary[Exchange, int] = WeakKeyDictionary()
"""With the number of the pass, which may be one that failed."""
_postponed: set[Exchange] = set()
_watched = -1
"""The number of the latest pass whose end is waited for."""


def touch(exchange: Exchange) -> None:
    """Let an exchange take part in the end of the current backward pass, if that ends well."""
    _touched[exchange] = torch._C._current_graph_task_id()
    _wait_for_the_end()


def _touch_all(exchanges: Iterable[Exchange], *_: object) -> None:
    for exchange in exchanges:
        touch(exchange)


def forget(exchange: Exchange) -> None:
    """Let an exchange that is over, or given up, take no part."""
    _touched.pop(exchange, None)
    _postponed.discard(exchange)


def _wait_for_the_end() -> None:
    """Have `_end` called once at the end of the current pass, if it ends well."""
    global _watched
    number = torch._C._current_graph_task_id()
    if number != _watched:
        _watched = number
        torch.autograd.Variable._execution_engine.queue_callback(_end)


def _end() -> None:
    """Run the exchanges of this pass; if it is one inside of another, at the end of that."""
    number = torch._C._current_graph_task_id()
    touched = {exchange for exchange, last in _touched.items() if last == number}
    for exchange in touched:
        del _touched[exchange]
    if (node := torch._C._current_autograd_node()) is not None:  # as of a reentrant checkpoint
        node.register_hook(partial(_touch_all, touched))
    elif touched:
        _run(_postponed.union(touched, *(exchange.together for exchange in touched)))


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
