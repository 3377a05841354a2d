"""Settings and fixtures of all tests.

Hypothesis on shared machines: no deadline for an example, and the same examples in CI.
"""

import os

import pytest
from hypothesis import settings

settings.register_profile("shared", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("shared")


@pytest.fixture
def small_blocks(monkeypatch):
    """Let small copies be cut as large ones are."""
    monkeypatch.setattr("horovod_detox.exchange.cut.BLOCK", 1)
