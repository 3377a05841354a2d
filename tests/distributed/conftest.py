"""Tests on real ranks: `horovodrun -np 4 python -m pytest tests/distributed/torch`, and with 6.

Every rank runs the same tests in the same order. Rank 0 reports; the others only if they fail.
"""

import io
import os
import sys
import tempfile

import pytest

RANK = int(os.environ.get("HOROVOD_RANK", "0"))
SIZE = int(os.environ.get("HOROVOD_SIZE", "0"))

# Ranks that clean up one folder of pytest at the same time get in each other's way.
_own_folder = tempfile.TemporaryDirectory(prefix=f"rank-{RANK}-")
os.environ["PYTEST_DEBUG_TEMPROOT"] = _own_folder.name


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    if not SIZE:
        raise pytest.UsageError("start these tests with horovodrun -np 4 (and -np 6)")
    config.addinivalue_line("markers", "ranks(n): needs a job of n ranks")
    if RANK:
        config.held_back = io.StringIO()
        config.pluginmanager.get_plugin("terminalreporter")._tw._file = config.held_back


def pytest_collection_modifyitems(config, items):
    """Leave out the tests for jobs of another size; they have a job of their own."""
    selected, deselected = [], []
    for item in items:
        marker = item.get_closest_marker("ranks")
        fits = marker is None or SIZE in marker.args
        (selected if fits else deselected).append(item)
    items[:] = selected
    config.hook.pytest_deselected(items=deselected)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    result = yield  # the reporter writes its summary
    if RANK and exitstatus:
        sys.stderr.write(session.config.held_back.getvalue())
    return result
