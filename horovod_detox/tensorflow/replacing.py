"""Methods of other packages' classes that are replaced, once a process."""

import functools
from collections.abc import Callable
from typing import Any


def replace_method(cls: Any, name: str, replacement: Callable[..., Any]) -> None:
    """Replace a method by one that is given it before its own arguments, unless that was done.

    Args:
        cls: the class, or one that inherits the method: it is replaced where it is defined.
        name: of the method.
        replacement: does as the method does wherever nothing of ours is concerned.
    """
    owner = next(each for each in cls.__mro__ if name in vars(each))
    method = getattr(owner, name)
    if getattr(method, "is_of_detox", False):
        return

    @functools.wraps(method)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return replacement(method, *args, **kwargs)

    replaced.is_of_detox = True  # type: ignore[attr-defined]
    setattr(owner, name, replaced)
