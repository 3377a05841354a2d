"""What makes the batches of a pipeline differ between ranks, though all run the same script."""

import pickle
import random
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context as eager
from tensorflow.python.framework.config import is_op_determinism_enabled

DRAWS = re.compile(
    r"Random(Gamma|Poisson|PoissonV2|Shuffle|StandardNormal|Uniform|UniformInt)"
    r"|(Parameterized)?TruncatedNormal|Multinomial|SampleDistortedBoundingBox(V2)?"
    r"|Stateful(?!Partitioned).*|Rng(ReadAnd)?Skip.*|NonDeterministicInts"
)
"""TensorFlow's operations that draw from a state, so that it matters who comes first."""

WRITES = re.compile(r"Assign(Add|Sub)?VariableOp|ResourceScatter\w+")
"""Those that leave something to the next element, as the seeds of Keras's layers."""

PARALLEL = re.compile(r"Parallel(Map|Interleave)Dataset(V\d)?")
"""Datasets inside of functions, as those of `interleave`, that work on several elements at once."""

IGNORE = 1
"""A policy of TensorFlow: say nothing of states, which a dataset's description cannot hold."""

OF_DRAWS = (
    "draws random numbers in a parallel {step}, in another order on every rank, so that the ranks "
    "of a group get different batches. Use {step}(..., num_parallel_calls=None), or "
    "tf.random.stateless_uniform and its like with seeds from the data, or, at the start of the "
    "script, tf.config.experimental.enable_op_determinism()"
)
OF_ORDER = (
    "{step} with deterministic=False gives its elements in another order on every rank, so that "
    "the ranks of a group get different batches. Use deterministic=True, there or in the options "
    "of the dataset"
)
OF_WORKERS = (
    "draws random numbers in {workers}, in another order on every rank, so that the ranks of a "
    "group get different batches. Use workers=1, use_multiprocessing=False, or a generator that is "
    "made from the index in each __getitem__, as np.random.default_rng([seed, index])"
)


def differences(data: Any) -> list[str]:
    """Say what will differ between ranks that are given this data, and the line that cures it.

    It reads what a `tf.data.Dataset` is made of and, of a `PyDataset` with workers, takes one
    batch to see whether it draws. What python code inside of a pipeline does is not seen.

    Args:
        data: what a script gives to `fit`; of other kinds nothing is said.
    """
    if isinstance(data, tf.data.Dataset):
        found = [] if is_op_determinism_enabled() else list(_of_pipeline(data))
    elif isinstance(data, keras.utils.PyDataset):
        found = list(_of_workers(data))
    else:
        found = []
    return list(dict.fromkeys(found))


def _of_pipeline(dataset: Any) -> Iterator[str]:
    in_order = dataset.options().deterministic is not False
    for stage in _stages(dataset):
        graphs = [function.function.graph.as_graph_def() for function in stage._functions()]
        step = _step(stage)
        if _is_parallel(stage):
            if not _keeps_order(_asked_order(stage), in_order):
                yield OF_ORDER.format(step=step)
            if any(_draws(node.op) for graph in graphs for node in _nodes(graph)):
                yield "the dataset " + OF_DRAWS.format(step=step)
            continue
        for graph in graphs:
            yield from _inside(graph, in_order)


def _inside(graph: Any, in_order: bool) -> Iterator[str]:
    """Say the same of datasets that are made inside of a function."""
    for node in filter(lambda node: PARALLEL.fullmatch(node.op), _nodes(graph)):
        step = "map" if "Map" in node.op else "interleave"
        if not _keeps_order(_order_of(node), in_order):
            yield OF_ORDER.format(step=step)
        if any(_draws(inner.op) for inner in _called(graph, node.attr["f"].func.name)):
            yield "the dataset " + OF_DRAWS.format(step=step)


def _stages(dataset: Any) -> Iterator[Any]:
    """Yield a dataset and all that it is made from."""
    yield dataset
    for source in dataset._inputs():
        yield from _stages(source)


def _is_parallel(stage: Any) -> bool:
    calls = getattr(stage, "_num_parallel_calls", None)
    return calls is not None and tf.get_static_value(calls) != 1


def _keeps_order(asked: str, by_default: bool) -> bool:
    return asked == "true" or (asked == "default" and by_default)


def _asked_order(stage: Any) -> str:
    """Return "true", "false" or "default": the argument `deterministic` of a stage."""
    if hasattr(stage, "_deterministic"):
        return stage._deterministic
    variant = tf.data.experimental.to_variant(stage)  # that of interleave is in its node alone
    text = tf.raw_ops.DatasetToGraphV2(input_dataset=variant, external_state_policy=IGNORE)
    graph = tf.compat.v1.GraphDef.FromString(text.numpy())
    nodes = {node.name: node for node in graph.node}
    (end,) = (node for node in graph.node if node.op == "_Retval")
    return _order_of(nodes[end.input[0].partition(":")[0]])


def _order_of(node: Any) -> str:
    return node.attr["deterministic"].s.decode()


def _step(stage: Any) -> str:
    """Return the method of a dataset that makes a stage.

    >>> _step(tf.data.Dataset.range(3).map(lambda x: x, num_parallel_calls=2))
    'map'
    """
    return re.sub(r"_|Parallel|Dataset|V\d", "", type(stage).__name__).lower()


def _draws(operation: str) -> bool:
    return bool(DRAWS.fullmatch(operation) or WRITES.fullmatch(operation))


def _nodes(graph: Any) -> list[Any]:
    """Return the nodes of a graph and of the functions that they call.

    A graph may hold other functions, too.
    """
    return [*graph.node, *_called(graph, *_names(graph.node))]


def _called(graph: Any, *names: str) -> list[Any]:
    """Return the nodes of functions of a graph, and of those that they call."""
    functions = {function.signature.name: function.node_def for function in graph.library.function}
    found, to_do, seen = [], [*names], set()
    while to_do:
        if (function := to_do.pop()) in seen or function not in functions:
            continue
        seen.add(function)
        found += functions[function]
        to_do += _names(functions[function])
    return found


def _names(nodes: Iterable[Any]) -> Iterator[str]:
    """Yield the names of all that nodes may call."""
    for node in nodes:
        yield node.op
        for attribute in node.attr.values():
            yield from (each.name for each in (attribute.func, *attribute.list.func) if each.name)


def _of_workers(dataset: Any) -> Iterator[str]:
    if dataset.workers < 2 and not dataset.use_multiprocessing:
        return
    with _random_states(dataset) as have_changed:
        dataset[0]
        draws = have_changed()
    if draws:
        kind = "processes" if dataset.use_multiprocessing else "threads"
        workers = f"{dataset.workers} {kind}"
        yield f"{type(dataset).__name__} " + OF_WORKERS.format(workers=workers)


@contextmanager
def _random_states(dataset: Any) -> Iterator[Callable[[], bool]]:
    """Keep the random states that a dataset may draw from; give what tells if one has changed.

    That of TensorFlow is not put back, as kernels have states beside it.
    """
    kept = [(read, write, pickle.dumps(read())) for read, write in _states(dataset)]
    try:
        yield lambda: any(pickle.dumps(read()) != state for read, _, state in kept)
    finally:
        for _, write, state in kept:
            write(pickle.loads(state))


def _states(dataset: Any) -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Yield what reads and what writes each random state: of the process, and of the dataset."""
    yield random.getstate, random.setstate
    yield np.random.get_state, np.random.set_state
    if of_tensorflow := getattr(eager.context(), "_rng", None):  # once it is seeded
        yield of_tensorflow.getstate, lambda state: None
    for held in vars(dataset).values():
        if isinstance(held, random.Random):
            yield held.getstate, held.setstate
        elif isinstance(held, np.random.RandomState):
            yield held.get_state, held.set_state
        elif isinstance(held, np.random.Generator):
            bits = held.bit_generator
            yield partial(getattr, bits, "state"), partial(setattr, bits, "state")
