"""Time the column rules, digests, packing and an exchange on a GPU: make bench-gpu

Everything takes turns with copying the same memory on the device once. The share of copy bandwidth
counts the bytes that must be read and written: those of all votes and of one result.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch

from horovod_detox import Detox
from horovod_detox.aggregators import by_name
from horovod_detox.arrays import device_digests
from horovod_detox.arrays.nh import Key
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.packing.torch import Uncompressed, packing_of
from measuring.clock import Clock, Operation
from measuring.tables import markdown

RULES = ("mean", "median", "trimmed_mean", "meamed")
SORT = "torch.sort"
RANKS, GROUP = 6, 3
LAYERS = 60
"""Tensors of the model whose gradients are packed."""
HEADER = ("what", "votes", "millions of floats", "ms", "copy, ms", "time / copy", "share of copy")
Action = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--votes", type=int, nargs="+", default=[3, 5, 8, 15, 32])
    parser.add_argument("--floats", type=int, default=10_000_000, help="of one vote")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal"
    )
    args = parser.parse_args()

    if args.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "There is no GPU that torch can use: nothing was measured.\n")
    device = torch.device(args.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU, a rehearsal"
    print(f"{name}; torch {torch.__version__}, CUDA {torch.version.cuda}\n", flush=True)
    clock = Clock(repeats=args.repeats)
    print(markdown(HEADER, []), end="", flush=True)
    for row in measured(args.votes, args.floats, device, clock):
        print(markdown(row, []).splitlines()[0], flush=True)


def measured(
    counts: list[int], floats: int, device: torch.device, clock: Clock
) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table."""
    for n in counts:
        votes = torch.randn(n, floats, device=device)
        for name in RULES:
            rule = by_name(name)
            f = min(n // 5, rule.max_f(n))
            if f >= 0:
                yield row(name, votes, 1, _rule(rule.default_f(f), votes), clock)
        yield row(SORT, votes, n, lambda votes=votes: torch.sort(votes, dim=0), clock)
    votes = torch.randn(1, floats // 2 * 2, device=device)
    words = votes[0].view(torch.int64)
    slices = list(words.tensor_split(RANKS))
    yield row("digests", votes, 0, lambda: device_digests.digests(slices, Key(b"key")), clock)
    packing = _packing(floats, device)
    yield row("packing", packing.copy[None], 1, packing.pack, clock)
    yield row("unpacking", packing.copy[None], 1, lambda: packing.unpack(packing.copy), clock)
    yield row(f"an exchange of {RANKS} ranks, all here", votes, 1, _exchange(packing), clock)


def row(
    what: str, votes: torch.Tensor, results: int, action: Action, clock: Clock
) -> tuple[str, ...]:
    """Time an action in turns with a copy of its `(n, d)` votes; `results` vectors are written."""
    wait = torch.cuda.synchronize if votes.is_cuda else lambda: None
    target = torch.empty_like(votes)

    def finished(action: Action) -> Operation:
        return Operation(lambda: (action(), wait()))

    (times,) = clock.compare(finished(lambda: target.copy_(votes)), [finished(action)])
    share = (len(votes) + results) / (2 * len(votes)) / times["ratio"]
    size = votes[0].nbytes / 4e6
    numbers = f"{size:.1f}", f"{times['ms']:.3f}", f"{times['reference_ms']:.3f}"
    return what, f"{len(votes)}", *numbers, f"{times['ratio']:.2f}", f"{share:.0%}"


def _rule(rule: Any, votes: torch.Tensor) -> Action:
    return lambda: rule(votes)


def _packing(floats: int, device: torch.device) -> Any:
    """Return how the gradients of a model of many layers travel."""
    named = []
    for i in range(LAYERS):
        parameter = torch.nn.Parameter(torch.zeros(floats // LAYERS, device=device))
        parameter.grad = torch.randn_like(parameter)
        named.append((str(i), parameter))
    return packing_of(named, Uncompressed)


def _exchange(packing: Any) -> Action:
    """Return an exchange of a gradient that is the same on every rank."""
    plan = Detox(group_size=GROUP, outer="median").plan(RANKS)
    copy = packing.pack()
    cluster = InProcessCluster(RANKS)
    engines: dict[int, Engine] = {}

    def program(collectives: Any) -> None:
        engine = engines.setdefault(collectives.rank, Engine(plan, collectives))
        engine.exchange(copy, packing.layout)

    return lambda: cluster.run(program)


if __name__ == "__main__":
    main()
