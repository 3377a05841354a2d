"""Errors of exchanges and collectives in traced functions, raised as what they are.

TensorFlow wraps what `tf.numpy_function` raises: an error of its own, with the text behind a page
on where the operation was made.
"""

import functools
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import tensorflow as tf

from horovod_detox import process
from horovod_detox.frontend.lost import explained
from horovod_detox.tensorflow.executions import executions
from horovod_detox.tensorflow.inside import inside
from horovod_detox.tensorflow.replacing import replace_method

_latest: list[Exception] = []
"""The error of this process's latest exchange, if there was one."""


def remembered(exchange: Callable[..., Any]) -> Callable[..., Any]:
    """Return an exchange whose error is kept for `raise_as_they_are`."""

    @functools.wraps(exchange)
    def exchange_and_remember(*args: Any) -> Any:
        _latest.clear()
        try:
            return exchange(*args)
        except Exception as error:
            _latest.append(error)
            raise

    return exchange_and_remember


def raise_as_they_are() -> None:
    """Have every `tf.function` raise the error of an exchange in the place of TensorFlow's.

    The class is what can be changed: a tape may be wrapped when its function is called already.
    """
    replace_method(type(tf.function(lambda: None)), "__call__", _call_and_translate)


def _call_and_translate(call: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    with executions.running((args, kwargs)), inside.running(function) as may_wait:
        try:
            return call(function, *args, **kwargs)
        except tf.errors.OpError as error:
            if failure := _behind(error):
                _leave_the_word_to_rank_0(failure)
                raise failure.with_traceback(None) from None
            if may_wait and (meaning := explained(error)) is not error:
                raise meaning from error
            raise


def _behind(error: tf.errors.OpError) -> Exception | None:
    """Return what an exchange raised, if that is what the error tells."""
    failure = _latest.pop() if _latest else None
    is_told = failure is not None and f"{type(failure).__name__}: " in str(error)
    return failure if is_told else None


def _leave_the_word_to_rank_0(failure: Exception) -> None:
    """Have this process say later what it raised, if nothing catches it.

    Ranks raise alike, and a job of 100 would say all 100 times. By then its launcher has ended this
    process, if rank 0 has spoken.
    """
    if process.rank() == 0 or getattr(failure, "is_explained", False):
        return
    write = getattr(sys.excepthook, "writes_by", sys.excepthook)

    def write_later(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        sys.excepthook = write
        if error is failure:
            time.sleep(process.PATIENCE)
        write(kind, error, trace)

    write_later.writes_by = write  # type: ignore[attr-defined]  # of the next failure, too
    sys.excepthook = write_later
