"""Tests on real ranks: `horovodrun -np 4 python -m pytest tests/distributed/torch`, and with 6.

They also run under `horovodrun --mpi` and Open MPI's `mpirun`, see `make test-mpi`. Every rank
runs the same tests in the same order. Rank 0 reports; the others only if they fail.
"""

import io
import os
import sys
import tempfile

import pytest

LAUNCHERS = ("HOROVOD", "OMPI_COMM_WORLD")
"""How the variables begin by which a launcher tells a process its rank."""


def _told(name: str) -> int:
    return next(
        (int(os.environ[f"{x}_{name}"]) for x in LAUNCHERS if f"{x}_{name}" in os.environ), 0
    )


RANK, SIZE = _told("RANK"), _told("SIZE")

# Ranks that share processors wake each other thousands of times a second, which takes a third less
# time where each stays on one. `make soak` leaves that to the system, as jobs do.
processors = sorted(os.sched_getaffinity(0))
if len(processors) < SIZE and "SOAK" not in os.environ:
    os.sched_setaffinity(0, {processors[RANK % len(processors)]})

# Ranks that clean up one folder of pytest at the same time get in each other's way.
_own_folder = tempfile.TemporaryDirectory(prefix=f"rank-{RANK}-")
os.environ["PYTEST_DEBUG_TEMPROOT"] = _own_folder.name


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    if not SIZE:
        raise pytest.UsageError("start these tests with horovodrun -np 4 (and -np 6)")
    config.addinivalue_line("markers", "ranks(n): needs a job of n ranks")
    config.addinivalue_line("markers", "soak: a variant more of a test, for `make soak`")
    if RANK:
        config.held_back = io.StringIO()
        config.pluginmanager.get_plugin("terminalreporter")._tw._file = config.held_back


def pytest_collection_modifyitems(config, items):
    """Leave out the tests for jobs of another size, which have a job of their own, and for soaking.

    Those of a GPU run on every size.

    Tests of join are the first: when a rank joins, Horovod crashes another that has never entered
    an operation in which all others were left, as by a test of timeouts.
    """
    items.sort(key=lambda item: item.path.stem != "test_join")
    selected, deselected = [], []
    for item in items:
        marker = item.get_closest_marker("ranks")
        on_gpu = config.getoption("device") != "none"
        fits = on_gpu or marker is None or SIZE in marker.args
        fits = fits and ("SOAK" in os.environ or item.get_closest_marker("soak") is None)
        (selected if fits else deselected).append(item)
    items[:] = selected
    config.hook.pytest_deselected(items=deselected)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    result = yield  # the reporter writes its summary
    if RANK and exitstatus:
        sys.stderr.write(session.config.held_back.getvalue())
    return result
