"""Settings and fixtures of all tests.

Hypothesis on shared machines: no deadline for an example, and the same examples in CI.
"""

import os

from hypothesis import settings

settings.register_profile("shared", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("shared")
