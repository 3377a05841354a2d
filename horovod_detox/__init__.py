"""Horovod training that survives bad ranks: DETOX in the place of allreduce."""

from horovod_detox.config import Detox

__all__ = ["Detox"]
__version__ = "0.1.0"
