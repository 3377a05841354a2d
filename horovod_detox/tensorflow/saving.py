"""What a process of TensorFlow saves: noted, as it may hold a wrong state."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf
from keras.src.saving import saving_api
from tensorflow.python.checkpoint.graph_view import ObjectGraphView

from horovod_detox.replicas.files import Files

files = Files()
"""Those of this process."""


def note_saves(are_held: Callable[[Iterable[Any]], bool]) -> None:
    """Have Keras and `tf.train.Checkpoint` note the files that they write.

    Args:
        are_held: returns whether some of these variables are compared with other ranks.
    """
    if getattr(saving_api.save_model, "notes", False):
        return
    for name in ("save_model", "save_weights"):
        noting = _noting(getattr(saving_api, name), are_held)
        setattr(saving_api, name, noting)
        if hasattr(keras.saving, name):
            setattr(keras.saving, name, noting)
    write = tf.train.Checkpoint._write

    @functools.wraps(write)
    def write_and_note(self: Any, *args: Any, **more: Any) -> Any:
        prefix = write(self, *args, **more)
        name = prefix.numpy() if tf.is_tensor(prefix) else prefix
        found = ObjectGraphView(self).breadth_first_traversal()[0]
        files.note(f"{tf.compat.as_str(name)}.index", are_held(found))
        return prefix

    tf.train.Checkpoint._write = write_and_note


def _noting(
    save: Callable[..., Any], are_held: Callable[[Iterable[Any]], bool]
) -> Callable[..., Any]:
    """Return a saver of Keras that notes what it writes."""

    @functools.wraps(save)
    def save_and_note(model: Any, filepath: Any, *args: Any, **more: Any) -> Any:
        result = save(model, filepath, *args, **more)
        files.note(filepath, are_held(model.variables))
        return result

    save_and_note.notes = True  # type: ignore[attr-defined]
    return save_and_note
