"""Errors of exchanges in traced functions, raised as what they are.

TensorFlow wraps what `tf.numpy_function` raises: an error of its own, with the text behind a page
on where the operation was made.
"""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

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
    cls: Any = type(tf.function(lambda: None))
    call = cls.__call__
    if hasattr(call, "raises_as_they_are"):
        return

    @functools.wraps(call)
    def call_and_translate(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return call(self, *args, **kwargs)
        except tf.errors.OpError as error:
            if failure := _behind(error):
                raise failure.with_traceback(None) from None
            raise

    call_and_translate.raises_as_they_are = True  # type: ignore[attr-defined]
    cls.__call__ = call_and_translate


def _behind(error: tf.errors.OpError) -> Exception | None:
    """Return what an exchange raised, if that is what the error tells."""
    failure = _latest.pop() if _latest else None
    is_told = failure is not None and f"{type(failure).__name__}: " in str(error)
    return failure if is_told else None
