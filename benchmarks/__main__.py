"""Run all benchmarks and write docs/benchmarks.md with its figures: python -m benchmarks

The measured rows are kept in build/benchmarks, so that parts can be run one by one.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.document import write

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "build" / "benchmarks"
PARTS = ("exchange", "overlap", "training", "aggregators")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--parts", nargs="*", choices=PARTS, default=PARTS, help="what to run; nothing: write only")
    add("--ranks", nargs="+", default=["4", "6", "9", "12"], help="of exchange and overlap")
    add("--sizes", nargs="+", help="floats of the exchange; default: 10^4 to 10^7")
    add("--rule-sizes", nargs="+", help="floats of the rules; default: 1 and 11 million")
    add("--threads", nargs="+", default=["1", "2"], help="of the rules")
    add("--repeats", type=int, help="rounds of everything; default: each part's own")
    add("--output", type=Path, default=ROOT / "docs", help="folder; default: docs")
    args = parser.parse_args()

    RESULTS.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        for old in RESULTS.glob(f"{part}-*"):
            old.unlink()
    repeats = ["--repeats", str(args.repeats)] if args.repeats else []
    if "exchange" in args.parts:
        for ranks in args.ranks:
            run("exchange", ranks, *_option("--sizes", args.sizes), *repeats, job=True)
    if "overlap" in args.parts:
        for ranks in args.ranks:
            run("overlap", ranks, *repeats, job=True)
    if "training" in args.parts:
        run("training", "6", *repeats, job=True)
    if "aggregators" in args.parts:
        sizes = _option("--sizes", args.rule_sizes)
        for threads in args.threads:
            run("aggregators", threads, "--threads", threads, *sizes, *repeats)
    write(RESULTS, args.output)


def run(name: str, count: str, *options: str, job: bool = False) -> None:
    """Run one benchmark, as a job of `count` ranks or in one process with `count` threads."""
    horovodrun = [str(Path(sys.executable).with_name("horovodrun")), "--gloo", "-np", count]
    rows = RESULTS / f"{name}-{int(count):02}.jsonl"
    program = [sys.executable, "-m", f"benchmarks.{name}", *options, "--json", str(rows)]
    threads = "1" if job else count
    environment = {
        "OMP_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    print(f"{name} {'of ranks' if job else 'with threads'}: {count} ...", end=" ", flush=True)
    start = time.monotonic()
    subprocess.run(
        [*(horovodrun if job else ()), *program],
        cwd=ROOT,
        env=os.environ | environment,
        check=True,
    )
    print(f"{time.monotonic() - start:.0f} s", flush=True)


def _option(name: str, values: list[str] | None) -> list[str]:
    return [name, *values] if values else []


if __name__ == "__main__":
    main()
