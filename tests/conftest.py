"""Settings and fixtures of all tests.

Hypothesis on shared machines: no deadline for an example, and the same examples in CI.
"""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

settings.register_profile("shared", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("shared")


@pytest.fixture(scope="session")
def frame() -> Iterator[ModuleType]:
    """Import the experiments as `python experiments` does: by their bare names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "experiments")
        yield importlib.import_module("experiments.__main__")
