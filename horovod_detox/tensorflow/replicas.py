"""What a process of TensorFlow holds alike with other ranks, piece by piece."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from weakref import ref

import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
from tensorflow.python.ops import stateful_random_ops

from horovod_detox.replicas.generators import read_numpy, read_python, write_numpy, write_python
from horovod_detox.replicas.pieces import BUFFERS, OPTIMIZER, PARAMETERS, RANDOM, Piece
from horovod_detox.replicas.replicas import Held
from horovod_detox.tensorflow.batches import batches, remember_batches
from horovod_detox.tensorflow.executions import executions
from horovod_detox.tensorflow.saving import files, note_saves
from horovod_detox.tensorflow.variables import name_of, native, on_broadcast


def words_of(variable: tf.Variable) -> np.ndarray:
    """Return the bits of a variable as words; what is missing to a word is zeros."""
    octets = np.ascontiguousarray(variable.numpy()).reshape(-1).view(np.uint8)
    missing = -len(octets) % 8
    return (np.pad(octets, (0, missing)) if missing else octets).view(np.int64)


def write_words(variable: tf.Variable, words: np.ndarray) -> None:
    """Overwrite a variable by what `words_of` returned."""
    like = variable.numpy()
    variable.assign(words.view(np.uint8)[: like.nbytes].view(like.dtype).reshape(like.shape))


def _piece(kind: str, name: str, variable: tf.Variable) -> Piece:
    return Piece(
        kind,
        name,
        functools.partial(words_of, variable),
        functools.partial(write_words, variable),
    )


def _pieces(kind: str, variables: Iterable[Any]) -> Iterator[Piece]:
    """Yield variables as pieces; those of seed generators are random states."""
    for i, variable in enumerate(map(native, variables)):
        if isinstance(variable, tf.Variable) and variable.dtype != tf.string:
            is_random = "seed_generator_state" in variable.name
            name = name_of(variable, i)
            yield _piece(RANDOM if is_random and kind == BUFFERS else kind, name, variable)


class Holdings:
    """What this process holds beside what is trained, as the script has shown."""

    def __init__(self) -> None:
        self._shown: list[ref[tf.Variable]] = []

    def hold(self, variables: Iterable[Any]) -> None:
        """Look after variables that members of a group hold alike; they are not kept alive."""
        known = {id(each) for each in self.variables()}
        natives = [native(variable) for variable in variables]
        self._shown += [
            ref(each) for each in natives if isinstance(each, tf.Variable) and id(each) not in known
        ]

    def variables(self) -> list[tf.Variable]:
        """Return those that are still there."""
        alive = [(each, each()) for each in self._shown]
        self._shown = [reference for reference, variable in alive if variable is not None]
        return [variable for _, variable in alive if variable is not None]

    def hold_some_of(self, variables: Iterable[Any]) -> bool:
        """Return whether one of these is looked after, as far as the script has shown it."""
        return not {id(native(each)) for each in variables}.isdisjoint(map(id, self.variables()))


holdings = Holdings()
"""Those of this process."""
on_broadcast.append(holdings.hold)


def guard(*things: Any) -> None:
    """Compare and heal more things that the ranks of a group should hold alike, as the weights.

    Variables that take part in a training loop without being trained are not found automatically.
    All ranks call it with the same things, after these were broadcast.

    Args:
        things: variables, or objects that have `variables`: models, layers, optimizers, metrics.

    Raises:
        TypeError: for anything else.
    """
    for thing in things:
        variables = [thing] if isinstance(native(thing), tf.Variable) else None
        variables = getattr(thing, "variables", None) if variables is None else variables
        if variables is None:
            raise TypeError(f"hvd.guard takes variables and objects that have some, not {thing!r}")
        holdings.hold(variables)


def held(
    trained: Callable[[], Sequence[Any]],
    optimizer: Any = None,
    models: Callable[[], Iterable[Any]] = tuple,
) -> Held:
    """Return what a rank holds that trains some variables.

    Args:
        trained: returns these.
        optimizer: of Keras; None: not known.
        models: returns those that train with it.
    """

    note_saves(holdings.hold_some_of)
    remember_batches()

    def pieces() -> list[Piece]:
        weights = [native(variable) for variable in trained()]
        kept = [native(v) for v in optimizer.variables] if optimizer is not None else []
        in_order = sorted(models(), key=lambda model: (len(model.weights), model.name))
        shown = [v for model in in_order for v in model.non_trainable_variables]
        others = {id(native(v)): native(v) for v in (*shown, *holdings.variables())}
        for each in (*weights, *kept):
            others.pop(id(each), None)
        return [
            *_pieces(PARAMETERS, weights),
            *_pieces(OPTIMIZER, kept),
            *_pieces(BUFFERS, others.values()),
            *_of_generators(),
        ]

    return Held(
        pieces,
        batches.digest,
        executions.is_over,
        executions.after,
        executions.engines.add,
        files,
        batches.ask,
    )


def _of_generators() -> Iterator[Piece]:
    """Yield the states of random generators that there are outside of layers."""
    yield Piece(RANDOM, "Python", read_python, write_python)
    yield Piece(RANDOM, "NumPy", read_numpy, write_numpy)
    if (generator := stateful_random_ops.global_generator) is not None:
        yield _piece(RANDOM, "tf.random.Generator", generator.state)
    if (seeds := global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)) is not None:
        yield _piece(RANDOM, "keras.random", native(seeds.state))
