"""Fixtures of the protocol's tests."""

import pytest


@pytest.fixture
def small_blocks(monkeypatch):
    """Let small copies be cut as large ones are."""
    monkeypatch.setattr("horovod_detox.exchange.cut.BLOCK", 1)
