"""Time every aggregation rule against np.median of the same votes, in turn in one process.

python benchmarks/aggregators.py
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from horovod_detox.aggregators import AGGREGATORS, by_name

PARAMETERS = {"centered_clipping": "(radius=1000.0)"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--votes", type=int, nargs="+", default=[5, 15])
    parser.add_argument("--floats", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for n in args.votes:
        votes = np.random.default_rng(0).normal(size=(n, args.floats)).astype(np.float32)
        print(f"\n{n} votes of {args.floats} floats\n\n| rule | ms | share of np.median |")
        print("|---|---|---|")
        for name in AGGREGATORS:
            rule = by_name(name + PARAMETERS.get(name, ""))
            if rule.max_f(n) >= 0:
                compare(name, lambda rule=rule, votes=votes: rule(votes), votes, args.repeats)


def compare(name: str, rule: Callable[[], object], votes: np.ndarray, repeats: int) -> None:
    """Print the median time of a rule, and the median ratio to its neighbour in time."""
    pairs = [
        (seconds(rule), seconds(lambda: np.median(votes, axis=0))) for _ in range(repeats + 1)
    ][1:]
    ours = 1000 * statistics.median(a for a, _ in pairs)
    print(
        f"| `{name}` | {ours:.0f} | {statistics.median(a / b for a, b in pairs):.2f} |", flush=True
    )


def seconds(operation: Callable[[], object]) -> float:
    start = time.perf_counter()
    operation()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
