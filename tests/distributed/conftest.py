"""Tests on real ranks: `horovodrun -np 4 python -m pytest tests/distributed`, and with 6.

Every rank runs the same tests in the same order. Rank 0 reports; the others only if they fail.
"""

import io
import os
import sys

import horovod.torch as stock
import pytest
import torch

import horovod_detox.torch as hvd
from horovod_detox import Detox

RANK = int(os.environ.get("HOROVOD_RANK", "0"))


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    if "HOROVOD_RANK" not in os.environ:
        raise pytest.UsageError("start these tests with horovodrun -np 4 (and -np 6)")
    config.addinivalue_line("markers", "ranks(n): needs a job of n ranks")
    torch.set_num_threads(1)
    stock.init(process_sets="dynamic")
    if RANK:
        config.held_back = io.StringIO()
        config.pluginmanager.get_plugin("terminalreporter")._tw._file = config.held_back


def pytest_collection_modifyitems(config, items):
    """Leave out the tests for jobs of another size; they have a job of their own."""
    selected, deselected = [], []
    for item in items:
        marker = item.get_closest_marker("ranks")
        fits = marker is None or stock.size() in marker.args
        (selected if fits else deselected).append(item)
    items[:] = selected
    config.hook.pytest_deselected(items=deselected)


def pytest_sessionfinish(session, exitstatus):
    if RANK and exitstatus:
        sys.stderr.write(session.config.held_back.getvalue())


@pytest.fixture
def start():
    """Return a function that starts a new session of the job: `start(group_size=2, ...)`."""

    def begin(**settings):
        settings.setdefault("timeout", 60.0)
        hvd.init(detox=Detox(**settings))

    return begin
