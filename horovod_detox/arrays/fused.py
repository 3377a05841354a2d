"""Chains of torch operations as one kernel of a GPU, which reads its arguments once.

`torch.compile` makes them from the same functions that other devices run operation by operation.
A chain may hold comparisons, selections, sums in a fixed order and integers, whose bits no compiler
changes; not divisions, nor products that are added up, which a GPU would round otherwise.
"""

import logging
import warnings
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
    if key not in _chains:
        expected = function(tensors, *parameters)
        _chains[key] = _checked(function, tensors, parameters, expected)
        return expected
    chain = _chains[key]
    return chain(*tensors) if chain else function(tensors, *parameters)


def _checked(
    function: Function, tensors: Tensors, parameters: Sequence[Any], expected: Tensors
) -> Callable[..., Tensors] | None:
    """Return the chain as one kernel if it gives the expected bits, but for the sign of a zero."""
    name = f"{function.__module__}.{function.__name__}{tuple(parameters)}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chain = torch.compile(_graph(function, len(tensors), parameters), dynamic=True)
            found = chain(*tensors)
    except Exception as error:  # whatever a compiler that we do not know may raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        log.warning("torch.compile cannot fuse %s, which will be slower: %s", name, reason)
        return None
    if all(torch.equal(ours + 0, theirs + 0) for ours, theirs in zip(found, expected, strict=True)):
        return chain
    log.warning("torch.compile changes bits of %s: its operations run one by one", name)
    return None


def _graph(function: Function, count: int, parameters: Sequence[Any]) -> torch.fx.GraphModule:
    """Return the operations of a function of so many tensors, as code of its own."""
    graph = torch.fx.Graph()
    tracer = GraphAppendingTracer(graph)
    tensors: Any = [Proxy(graph.placeholder(f"tensor_{i}"), tracer) for i in range(count)]
    results: Any = function(tensors, *parameters)
    graph.output(tuple(result.node for result in results))
    return torch.fx.GraphModule({}, graph)
