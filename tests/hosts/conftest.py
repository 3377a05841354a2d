"""Tests on several hosts, which are namespaces of this machine: `make test-hosts`."""

import os

import pytest


def pytest_configure():
    if os.geteuid():
        raise pytest.UsageError("only root can make hosts of this machine: sudo make test-hosts")
