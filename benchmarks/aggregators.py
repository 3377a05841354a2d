"""Time every aggregation rule against plain versions of it, in turn in one process.

python -m benchmarks.aggregators --threads 2
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from horovod_detox.aggregators import AGGREGATORS, Aggregator, by_name
from measuring.clock import Clock, Operation
from measuring.tables import report

PARAMETERS = {"centered_clipping": "(radius=1000.0)"}
CHECKED = 10_000
"""Columns in which a rule is compared with its plain version; it warms up, too."""
Plain = Callable[[Any, int], Any]
"""From votes `(n, d)` and f to `(d,)`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--votes", type=int, nargs="+", default=[5, 15, 45])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 11_000_000])
    parser.add_argument("--most", type=int, default=200_000_000, help="numbers in all votes")
    parser.add_argument("--rules", nargs="+", choices=AGGREGATORS, default=list(AGGREGATORS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=1.0, help="seconds for repeats of a rule")
    parser.add_argument("--json", type=Path, help="append the results to this file")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    clock = Clock(repeats=args.repeats, limit=args.limit)
    shapes = [(n, d) for d in args.sizes for n in args.votes if n * d <= args.most]
    rows = []
    for shape in shapes:
        votes = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        for name in args.rules:
            rows += compare(name, votes, clock)
    report([{"threads": args.threads} | row for row in rows], args.json)


def compare(name: str, votes: np.ndarray, clock: Clock) -> list[dict[str, Any]]:
    """Return a row for each plain version of a rule, or one of the rule alone."""
    n, floats = votes.shape
    rule, tensor = by_name(name + PARAMETERS.get(name, "")), torch.from_numpy(votes)
    f = min(n // 5, rule.max_f(n))
    if f < 0:
        return []
    rule = rule.default_f(f)
    row = {"rule": name, "votes": n, "floats": floats, "f": f}
    tables = {"NumPy": (NUMPY, votes), "torch": (TORCH, tensor)}
    plain = {}
    for library, (functions, x) in tables.items():
        if function := functions.get(name):
            check(rule, function, x[:, :CHECKED], f)
            plain[library] = Operation(lambda function=function, x=x: function(x, f))
    ours = Operation(lambda: rule(votes))
    measured = clock.compare(ours, list(plain.values()) or [ours])
    return [
        row | {"against": library} | times
        for library, times in zip(plain or ["itself"], measured, strict=True)
    ]


def check(rule: Aggregator, function: Plain, x: Any, f: int) -> None:
    """Check that a rule and its plain version agree, but for a few ties broken differently."""
    agree = np.isclose(rule(x), function(x, f), rtol=1e-3, atol=1e-4).mean()
    if agree < 0.999:
        raise AssertionError(f"{rule} and its plain version agree in {agree:.2%} of the columns")


def _nearest_mean(x: np.ndarray, centre: np.ndarray, kept: int) -> np.ndarray:
    nearest = np.argsort(np.abs(x - centre), axis=0)[:kept]
    return np.take_along_axis(x, nearest, axis=0).mean(axis=0)


def _distances(x: np.ndarray) -> np.ndarray:
    squares = np.zeros((len(x), len(x)))
    for i in range(len(x)):
        for j in range(i):
            squares[i, j] = squares[j, i] = np.linalg.norm(x[i] - x[j]) ** 2
    return squares


def _krum_order(squares: np.ndarray, f: int) -> np.ndarray:
    neighbours = np.sort(squares, axis=1)[:, 1 : len(squares) - f - 1]
    return np.argsort(neighbours.sum(axis=1), kind="stable")


def _multi_krum(x: np.ndarray, f: int) -> np.ndarray:
    return x[_krum_order(_distances(x), f)[: len(x) - f - 2]].mean(axis=0)


def _bulyan(x: np.ndarray, f: int) -> np.ndarray:
    squares, left, chosen = _distances(x), list(range(len(x))), []
    while len(chosen) < len(x) - 2 * f:
        chosen.append(left.pop(_krum_order(squares[np.ix_(left, left)], f)[0]))
    return _nearest_mean(x[chosen], np.median(x[chosen], axis=0), len(chosen) - 2 * f)


def _geometric_median(x: np.ndarray, f: int) -> np.ndarray:
    point = x.mean(axis=0)
    for _ in range(5):
        pulls = 1 / np.array([np.linalg.norm(vote - point) for vote in x])
        point = (pulls / pulls.sum()).astype(x.dtype) @ x
    return point


def _torch_sorted(x: torch.Tensor) -> torch.Tensor:
    return torch.sort(x, dim=0).values


def _torch_trimmed_mean(x: torch.Tensor, f: int) -> torch.Tensor:
    return _torch_sorted(x)[f : len(x) - f].mean(dim=0)


def _torch_nearest_mean(x: torch.Tensor, centre: torch.Tensor, kept: int) -> torch.Tensor:
    nearest = torch.sort((x - centre).abs(), dim=0).indices[:kept]
    return x.gather(0, nearest).mean(dim=0)


NUMPY: dict[str, Plain] = {
    "mean": lambda x, f: x.mean(axis=0),
    "median": lambda x, f: np.median(x, axis=0),
    "trimmed_mean": lambda x, f: np.sort(x, axis=0)[f : len(x) - f].mean(axis=0),
    "geometric_median": _geometric_median,
    "krum": lambda x, f: x[_krum_order(_distances(x), f)[0]],
    "multi_krum": _multi_krum,
    "bulyan": _bulyan,
    "meamed": lambda x, f: _nearest_mean(x, np.median(x, axis=0), len(x) - f),
    "phocas": lambda x, f: _nearest_mean(
        x, np.sort(x, axis=0)[f : len(x) - f].mean(axis=0), len(x) - f
    ),
    "cge": lambda x, f: x[np.argsort(np.linalg.norm(x, axis=1))[: len(x) - f]].mean(axis=0),
    "sign_majority": lambda x, f: np.sign(np.sign(x).sum(axis=0)),
}
TORCH: dict[str, Plain] = {
    "mean": lambda x, f: x.mean(dim=0),
    "median": lambda x, f: _torch_sorted(x)[len(x) // 2],
    "trimmed_mean": _torch_trimmed_mean,
    "meamed": lambda x, f: _torch_nearest_mean(x, _torch_sorted(x)[len(x) // 2], len(x) - f),
    "phocas": lambda x, f: _torch_nearest_mean(x, _torch_trimmed_mean(x, f), len(x) - f),
    "sign_majority": lambda x, f: x.sign().sum(dim=0).sign(),
}


if __name__ == "__main__":
    main()
