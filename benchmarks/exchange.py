"""Time the exchanges against Horovod's allreduce of as many floats, in turn in one job.

horovodrun -np 6 --gloo python -m benchmarks.exchange

Gradients of normally distributed numbers, shifted by the index of the group. Either nobody lies;
or one rank of every group always does, so that it is not relied upon any more; or it does for the
first time, in the second step of a new optimizer. Liars hold another gradient from the beginning:
no attack is timed. What was lied about and what came of it is checked after every step.
"""

import argparse
import gc
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

import horovod_detox.torch as hvd
from benchmarks import job
from benchmarks.memory import peak_growth, settle
from horovod_detox import Detox
from horovod_detox.aggregators import by_name
from horovod_detox.exchange import EXCHANGES
from horovod_detox.torch.context import context
from horovod_detox.vote.report import Event
from measuring.clock import Operation
from measuring.traffic import Traffic

NOBODY, PERSISTENT, FIRST_TIME = LIARS = ("no liar", "persistent liar", "first-time liar")
FLOAT = 4
MEASURABLE = 10**6
"""The memory for fewer floats drowns in other things, and their times vary more."""

counter = Traffic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--exchanges", nargs="+", choices=EXCHANGES, default=["sharded", "leaders"])
    parser.add_argument("--repeats", type=int, default=7, help="twice as many for small gradients")
    parser.add_argument("--limit", type=float, default=45.0, help="seconds per size and exchange")
    parser.add_argument("--group-size", type=int, default=3)
    parser.add_argument("--outer", default="median")
    parser.add_argument("--witnesses", type=int, default=0, help="of the exchange sharded")
    parser.add_argument("--tolerance", type=float, default=0.0, help="of the exchange sharded")
    parser.add_argument("--overlap-bytes", type=int, default=Detox().overlap_bytes)
    parser.add_argument("--json", type=Path, help="append the results to this file")
    args = parser.parse_args()

    torch.set_num_threads(1)
    logging.getLogger("horovod_detox").setLevel(logging.ERROR)  # the first lie of each liar
    gc.freeze()  # what exists by now need not be looked at in every collection
    context.make_collectives = counter.wrap(context.make_collectives)
    job.say([row for size in args.sizes for row in compare(size, args)], args)


def compare(size: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for allreduce and for every exchange with every kind of liars."""
    rows = [row for exchange in args.exchanges for row in measure(exchange, size, args)]
    times = {"ms": float(np.median([row["reference_ms"] for row in rows]))}
    return [Allreduce(Setting(size, detox_of(args.exchanges[0], args))).row() | times, *rows]


def measure(exchange: str, size: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for every kind of liars."""
    setting = Setting(size, detox_of(exchange, args))
    steps = [TimedStep(setting, liars) for liars in LIARS]
    repeats = args.repeats if size >= MEASURABLE else 2 * args.repeats
    measured = job.clock(repeats, args.limit).compare(
        Allreduce(setting).operation, [step.operation for step in steps]
    )
    rows = [step.row() | times for step, times in zip(steps, measured, strict=True)]
    for step in steps:
        step.disconnect()
    return rows


def detox_of(exchange: str, args: argparse.Namespace) -> Detox:
    """Return the settings of a job with this exchange."""
    is_sharded = exchange == "sharded"
    return Detox(
        args.group_size,
        outer=args.outer,
        exchange=exchange,
        overlap_bytes=args.overlap_bytes,
        tolerance=args.tolerance if is_sharded else 0.0,
        witnesses=args.witnesses if is_sharded else 0,
    )


class Setting:
    """The gradients of all groups, and what should come of them.

    Attributes:
        honest: `(d,)`, the gradient of this rank's group.
        update: `(d,)`, what every rank should hold after the exchange.
        gradient: `(d,)`, what is exchanged, in place.
        weights: `(d,)`, which the gradient is of.
        is_liar: whether this rank is its group's liar.
    """

    def __init__(self, size: int, detox: Detox) -> None:
        settle()
        hvd.init(detox=detox)
        self.size, self.detox = size, detox
        base = torch.randn(size, generator=torch.Generator().manual_seed(size))
        self.honest = base + hvd.group()
        votes = base.numpy() + np.arange(hvd.num_groups(), dtype=np.float32)[:, None]
        self.update = torch.from_numpy(by_name(str(detox.outer))(votes))
        self.gradient = self.honest.clone()
        self.weights = torch.zeros(size)
        self.is_liar = hvd.group_rank() == hvd.group_size() - 1

    def row(self, exchange: str, liars: str) -> dict[str, Any]:
        """Return the beginning of a row."""
        return {"ranks": hvd.size(), "floats": self.size, "exchange": exchange, "liars": liars}


class Allreduce:
    """Horovod's allreduce, in place."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.operation = Operation(self.run, self.prepare)

    def prepare(self) -> None:
        self.setting.gradient.copy_(self.setting.honest)

    def run(self) -> None:
        hvd.allreduce_(self.setting.gradient, name=f"allreduce.{self.setting.size}")

    def row(self) -> dict[str, Any]:
        """Return the row, without times."""
        memory = _multiple(self.setting, self.run)
        sent = 2 * (hvd.size() - 1) / hvd.size()  # a ring
        return self.setting.row("allreduce", NOBODY) | {
            "sent": sent, "busiest": sent, "memory": memory,
        }  # fmt: skip


class TimedStep:
    """`synchronize()` of an optimizer with one parameter."""

    def __init__(self, setting: Setting, liars: str) -> None:
        self.setting, self.liars = setting, liars
        self.faults: list[Event] = []
        self.optimizer: Any = None
        self.parameter: Any = None
        self.connect()
        self.operation = Operation(self.run, self.prepare, self.check)

    def connect(self) -> None:
        """Begin anew, with nobody distrusted."""
        self.disconnect()
        context.forget()
        hvd.init(detox=self.setting.detox)
        hvd.on_fault(self.faults.append)
        self.parameter = torch.nn.Parameter(self.setting.weights)
        self.parameter.grad = self.setting.gradient
        self.optimizer = hvd.DistributedOptimizer(torch.optim.SGD([self.parameter], lr=0.0))

    def disconnect(self) -> None:
        """Free the optimizer, which the hook of its parameter would keep for ever."""
        if self.parameter is not None:
            self.parameter._post_accumulate_grad_hooks.clear()
        self.optimizer = self.parameter = None
        settle()

    def prepare(self) -> None:
        if self.liars == FIRST_TIME:
            self.connect()
            self.fill(1)
            self.run()
            self.expect_faults(0)
        self.fill(-100 if self.setting.is_liar and self.liars != NOBODY else 1)
        counter.reset()

    def fill(self, factor: float) -> None:
        """Write this rank's copy."""
        torch.mul(self.setting.honest, factor, out=self.setting.gradient)

    def run(self) -> None:
        self.optimizer.synchronize()

    def check(self) -> None:
        """Check that all liars were named and nobody else, and that the update is right."""
        self.sent = counter.sent / (FLOAT * self.setting.size)
        self.expect_faults(0 if self.liars == NOBODY else hvd.num_groups())
        update, right = self.setting.gradient, self.setting.update
        if not (torch.equal(update, right) or torch.allclose(update, right)):
            raise AssertionError(f"wrong update by {self.setting.detox} with a {self.liars}")

    def expect_faults(self, count: int) -> None:
        """Check that so many ranks were named, and this one only if it is a liar; forget them."""
        named = [(event.kind, rank) for event in self.faults for rank in event.ranks]
        me = ("dissent", hvd.rank())
        if len(named) != count or (me in named) != (self.setting.is_liar and count > 0):
            raise AssertionError(f"{self.liars}: {count} ranks lied, and these were named: {named}")
        self.faults.clear()

    def row(self) -> dict[str, Any]:
        """Return the row, without times."""
        return self.setting.row(self.setting.detox.exchange, self.liars) | {
            "sent": job.average(self.sent),
            "busiest": float(job.slowest(np.array(self.sent))),
            "memory": self.memory() if self.liars == NOBODY else None,
        }

    def memory(self) -> float | None:
        """Return what an optimizer needs for its first steps, with all that it keeps."""
        self.disconnect()

        def first_steps() -> None:
            self.connect()
            self.run()
            self.run()

        return _multiple(self.setting, first_steps)


def _multiple(setting: Setting, action: Any) -> float | None:
    """Return the memory that an action needs on any rank, in multiples of the gradient."""
    growth = peak_growth(action) / (FLOAT * setting.size)
    return float(job.slowest(np.array(growth))) if setting.size >= MEASURABLE else None


if __name__ == "__main__":
    main()
