"""Settings and fixtures of all tests.

Hypothesis on shared machines: no deadline for an example, and the same examples in CI. With
`--device cuda` only tests of an accelerator run, on the first GPU instead of a fake one.
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


def pytest_addoption(parser):
    parser.addoption(
        "--device", choices=["none", "cuda"], default="none", help="the GPU to test; default: none"
    )


def pytest_configure(config):
    if config.getoption("device") == "cuda":
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.exit("There is no GPU that torch can use: nothing was tested.", returncode=2)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    if config.getoption("device") == "none":
        return
    of_a_device = [item for item in items if {"accelerator", "device"} & {*item.fixturenames}]
    config.hook.pytest_deselected(items=[item for item in items if item not in of_a_device])
    items[:] = of_a_device


@pytest.fixture(scope="session")
def accelerator(request):
    """Return where tensors are that are not in main memory, see `tests/accelerators.py`."""
    pytest.importorskip("torch")
    from tests.accelerators import Fake, Gpu

    return Fake() if request.config.getoption("device") == "none" else Gpu()
