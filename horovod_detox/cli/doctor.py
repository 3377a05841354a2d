"""Examine an installation, or, started by horovodrun, whether all ranks compute the same bits."""

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from horovod_detox import process
from horovod_detox.cli.installation import FRAMEWORKS, examine, frameworks_of, horovod_metadata
from horovod_detox.determinism.conditions import NO_BITS, differing, ranks_by_value
from horovod_detox.determinism.verdict import ADVICE, DETERMINISTIC, PreflightReport
from horovod_detox.exchange.sharing import share
from horovod_detox.remedies import BAD_INPUT
from horovod_detox.vote.groups import Groups

WIDTH = 80
GRACE_SECONDS = 3.0
FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "--framework",
        choices=list(FRAMEWORKS),
        help="the framework to examine (default: all that Horovod was built for)",
    )


def run(args: argparse.Namespace) -> int:
    """Print what was found; return 0 if a job can run and no honest rank would be accused."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not process.is_launched():
        metadata = horovod_metadata()
        return _examine_installation(frameworks_of(metadata, args.framework), metadata)
    # What a host lacks is told once by each host, all else by rank 0.
    is_first_there = process.local_rank() == 0
    try:
        framework = frameworks_of(horovod_metadata(), args.framework)[0]
    except (ModuleNotFoundError, ValueError):
        if is_first_there:
            raise
        return _end_after_rank_0(BAD_INPUT)
    try:
        return _examine_job(framework)
    except (RuntimeError, ValueError) as error:
        if process.rank() != 0:
            return _end_after_rank_0(FAILED)
        print(f"horovod-detox doctor: {error}", file=sys.stderr)
        return FAILED


def _end_after_rank_0(code: int) -> int:
    """Return an exit code late: horovodrun ends all other ranks as soon as one has failed."""
    time.sleep(GRACE_SECONDS)
    return code


def _examine_installation(frameworks: list[str], metadata: dict[str, str]) -> int:
    """Print what was found on this machine."""
    problems = 0
    for finding in examine(frameworks, metadata):
        print(finding, flush=True)
        problems += bool(finding.remedy)
    if problems:
        print(f"No job can run here until {'this is' if problems == 1 else 'these are'} solved.")
        return FAILED
    print("A job can run here. To see whether its ranks compute the same bits:")
    print("    horovodrun -np 6 horovod-detox doctor")
    return 0


def _examine_job(framework: str) -> int:
    """Let all ranks compute a gradient; on rank 0, print what came of it."""
    frontend: Any = import_module(f"horovod_detox.{framework}")
    context = import_module(f"horovod_detox.{framework}.context").context
    frontend.init()
    report = import_module(f"horovod_detox.{framework}.trial").checkup()
    if frontend.rank() == 0:
        plan = context.session().plan()
        print(describe(framework, report, plan.groups if plan else None), flush=True)
    share(context.collectives("detox.doctor"), "printed", True)
    frontend.shutdown()
    return 0 if report.is_deterministic else FAILED


def describe(framework: str, report: PreflightReport, groups: Groups | None) -> str:
    """Return the ranks of a job, their conditions and the verdict as lines of text."""
    conditions = report.conditions
    odd = differing(conditions)
    common = [
        f"{name} {value}"
        for name, value in conditions[0].items()
        if name not in odd and name not in NO_BITS
    ]
    lines = [f"{framework} on {_count(len(conditions), 'rank')}, {_groups(groups)}"]
    for host, ranks in ranks_by_value(conditions, "host").items():
        lines.append(f"    host {host}: {_listed(ranks, groups)}")
    lines.append("the same on every rank:")
    lines += textwrap.wrap(
        "; ".join(common), WIDTH, initial_indent=" " * 4, subsequent_indent="    "
    )
    if odd:
        lines += ["different:", textwrap.indent(report.table(), " " * 4)]
    lines.append(str(report))
    if report.verdict != DETERMINISTIC:
        lines += ["What to do:", ADVICE]
    return "\n".join(lines)


def _groups(groups: Groups | None) -> str:
    if groups is None:
        return "which trains without DETOX: there is no other rank to vote with"
    sizes = sorted({len(ranks) for ranks in groups.members})
    return f"{_count(len(groups), 'group')} of {' or '.join(map(str, sizes))}"


def _listed(ranks: list[int], groups: Groups | None) -> str:
    """Say which ranks, and in which group each is."""
    if groups is None:
        return _numbers("rank", ranks)
    of = [groups.of(rank) for rank in ranks]
    return f"{_numbers('rank', ranks)} of {_numbers('group', of if len({*of}) > 1 else of[:1])}"


def _numbers(noun: str, numbers: Iterable[int]) -> str:
    words = list(map(str, numbers))
    return f"{noun}{'s' * (len(words) > 1)} {', '.join(words)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
