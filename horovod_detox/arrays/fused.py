"""Chains of torch operations as one kernel of a GPU, which reads its arguments once.

`torch.compile` makes them from the same functions that other devices run operation by operation.
A chain may hold comparisons, selections, sums in a fixed order and integers, whose bits no compiler
changes; not divisions, nor products that are added up, which a GPU would round otherwise.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx.proxy import GraphAppendingTracer, Proxy

log = logging.getLogger("horovod_detox")

Tensors = Sequence[torch.Tensor]
Function = Callable[..., Tensors]
"""From tensors, and parameters that can be hashed, to tensors; it writes to none."""

KIND = "cuda"
"""The type of device that gets kernels of its own."""

_chains: dict[Any, Callable[..., Tensors] | None] = {}


def fused(function: Function, tensors: Tensors, *parameters: Any) -> Tensors:
    """Return `function(tensors, *parameters)`, computed by one kernel on a GPU.

    The first call for some number of tensors, their dtype and parameters computes both ways; where
    one kernel cannot be had, or has other bits, the operations run one by one ever after.
    """
    if tensors[0].device.type != KIND:
        return function(tensors, *parameters)
    key = function, len(tensors), tensors[0].dtype, parameters
    is_new = key not in _chains
    if is_new:
        _chains[key] = torch.compile(_graph(function, len(tensors), parameters), dynamic=True)
    found = _attempt(key, tensors)
    if found is not None and not is_new:
        return found
    expected = function(tensors, *parameters)
    if found is not None and not all(map(_same, found, expected)):
        log.warning("torch.compile changes bits of %s: its operations run one by one", _name(key))
        _chains[key] = None
    return expected


def _attempt(key: Any, tensors: Tensors) -> Tensors | None:
    """Return what one kernel computes; None: there is none."""
    chain = _chains[key]
    if chain is None:
        return None
    try:
        return chain(*tensors)
    except Exception as error:  # whatever a compiler that we do not know may raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        log.warning("torch.compile cannot fuse %s, which will be slower: %s", _name(key), reason)
        _chains[key] = None
        return None


def _name(key: Any) -> str:
    function, _, _, parameters = key
    return f"{function.__module__}.{function.__name__}{tuple(parameters)}"


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors hold the same numbers; zeros have no sign."""
    return torch.equal(a + 0, b + 0)


def _graph(function: Function, count: int, parameters: Sequence[Any]) -> torch.fx.GraphModule:
    """Return the operations of a function of so many tensors, as code of its own."""
    graph = torch.fx.Graph()
    tracer = GraphAppendingTracer(graph)
    tensors: Any = [Proxy(graph.placeholder(f"tensor_{i}"), tracer) for i in range(count)]
    results: Any = function(tensors, *parameters)
    graph.output(tuple(result.node for result in results))
    return torch.fx.GraphModule({}, graph)
