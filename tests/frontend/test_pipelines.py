"""Pipelines whose batches differ between ranks are told from those whose do not."""

import doctest
import pickle
import random
import re

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
pytest.importorskip("horovod.tensorflow")
keras = pytest.importorskip("keras")

from horovod_detox.tensorflow.data import dealing, pipelines  # noqa: E402
from horovod_detox.tensorflow.data.pipelines import differences  # noqa: E402

NUMBERS = tf.data.Dataset.range(8)
STATE = tf.random.Generator.from_seed(1)
FLIP = keras.layers.RandomFlip()
NOISE = keras.layers.GaussianNoise(0.5)
IMAGE = tf.zeros((4, 4, 3))


@pytest.fixture(autouse=True)
def unseeded():
    """TensorFlow warns where a function inside of a pipeline inherits a seed."""
    tf.random.set_seed(None)


def uniform(x):
    return tf.random.uniform([])


def sometimes_uniform(x):
    return tf.cond(x > 3, lambda: tf.random.uniform([]), lambda: 0.0)


def of_a_generator(x):
    return STATE.uniform([])


def flipped(x):
    return tf.image.random_flip_left_right(IMAGE)


def by_a_layer(x):
    return FLIP(IMAGE, training=True)


def by_another_layer(x):
    return NOISE(tf.ones(3), training=True)


def double(x):
    return 2 * x


def stateless(x):
    return tf.random.stateless_uniform([], [x, 1])


def scaled(x):
    return keras.layers.Rescaling(2.0)(tf.ones(3))


def count(x):
    return tf.data.Dataset.range(x)


def random_count(x):
    return count(x).map(uniform)


def parallel_random_count(x):
    return count(x).map(uniform, num_parallel_calls=2)


def hasty_count(x):
    return count(x).map(double, num_parallel_calls=2, deterministic=False)


def busy_count(x):
    return count(x).map(double, num_parallel_calls=2)


def mixed_count(x):
    """Draws, and works in parallel, but not at once."""
    return count(x).map(uniform).map(double, num_parallel_calls=2)


def hasty(dataset):
    options = tf.data.Options()
    options.deterministic = False
    return dataset.with_options(options)


PARALLEL = {"num_parallel_calls": 2}
ANYHOW = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": False}


@pytest.mark.parametrize(
    "draw", [uniform, sometimes_uniform, of_a_generator, flipped, by_a_layer, by_another_layer]
)
@pytest.mark.parametrize("behind", [False, True])
def test_random_numbers_in_a_parallel_map(draw, behind):
    dataset = NUMBERS.shuffle(8, seed=1).map(draw, **PARALLEL)
    if behind:
        dataset = dataset.batch(2).map(tf.identity).prefetch(2)
    (text,) = differences(dataset)
    assert "the dataset draws random numbers in a parallel map" in text
    assert "num_parallel_calls=None" in text
    assert "enable_op_determinism()" in text


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: NUMBERS.interleave(count, **ANYHOW), "interleave with deterministic=False"),
        (lambda: NUMBERS.map(double, **ANYHOW).batch(2), "map with deterministic=False"),
        (lambda: NUMBERS.batch(2, **ANYHOW), "batch with deterministic=False"),
        (lambda: hasty(NUMBERS.map(double, **PARALLEL)), "map with deterministic=False"),
        (lambda: hasty(NUMBERS).map(double, **PARALLEL).batch(2), "map with deterministic=False"),
        (lambda: NUMBERS.interleave(random_count, **PARALLEL), "draws random.*interleave"),
        (lambda: NUMBERS.interleave(parallel_random_count), "draws random.*parallel map"),
        (lambda: NUMBERS.flat_map(parallel_random_count), "draws random.*parallel map"),
        (lambda: NUMBERS.flat_map(hasty_count), "map with deterministic=False"),
        (lambda: hasty(NUMBERS.flat_map(busy_count)), "map with deterministic=False"),
        (
            lambda: tf.data.Dataset.zip(NUMBERS, NUMBERS.map(uniform, **PARALLEL)),
            "draws random.*parallel map",
        ),
    ],
)
def test_other_orders_and_places(make, told):
    (text,) = differences(make())
    assert re.search(told, text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NUMBERS.map(uniform),
        lambda: NUMBERS.map(by_a_layer),
        lambda: NUMBERS.map(uniform, num_parallel_calls=1),
        lambda: NUMBERS.map(uniform).map(double, **PARALLEL),
        lambda: NUMBERS.map(double, **PARALLEL),
        lambda: NUMBERS.map(stateless, **PARALLEL),
        lambda: NUMBERS.map(scaled, **PARALLEL),
        lambda: NUMBERS.interleave(count, **PARALLEL),
        lambda: NUMBERS.interleave(random_count),
        lambda: NUMBERS.flat_map(mixed_count),
        lambda: NUMBERS.interleave(busy_count),
        lambda: hasty(NUMBERS).map(double, deterministic=True, **PARALLEL),
        lambda: NUMBERS.shuffle(8).batch(2, **PARALLEL).prefetch(tf.data.AUTOTUNE),
        lambda: hasty(NUMBERS.map(double).batch(2)),
    ],
)
def test_honest_pipelines_hear_nothing(make):
    assert differences(make()) == []


@pytest.mark.parametrize("other", [None, np.zeros(3), [1, 2], tf.zeros(3)])
def test_of_other_data_nothing_is_said(other):
    assert differences(other) == []


def test_determinism_cures_pipelines(monkeypatch):
    monkeypatch.setattr(pipelines, "is_op_determinism_enabled", lambda: True)
    assert differences(NUMBERS.map(uniform, **PARALLEL)) == []
    assert differences(NUMBERS.map(double, **ANYHOW)) == []


class Batches(keras.utils.PyDataset):
    def __init__(self, draw=lambda dataset, index: 0.0, **options):
        super().__init__(**options)
        self.draw = draw
        self.generator = np.random.default_rng(1)
        self.old_generator = np.random.RandomState(1)
        self.python = random.Random(1)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return np.full((2, 3), self.draw(self, index)), np.zeros(2)


DRAWING = {
    "python": lambda dataset, index: random.random(),
    "NumPy": lambda dataset, index: np.random.rand(),
    "NumPy, shuffling": lambda dataset, index: np.random.permutation(624)[0],
    "TensorFlow": lambda dataset, index: tf.random.uniform([]),
    "a generator": lambda dataset, index: dataset.generator.random(),
    "an old generator": lambda dataset, index: dataset.old_generator.rand(),
    "python's generator": lambda dataset, index: dataset.python.random(),
}


@pytest.mark.parametrize("draw", DRAWING.values(), ids=DRAWING)
def test_workers_that_draw(draw):
    tf.random.set_seed(3)
    batches = Batches(draw, workers=2)
    states = _states(batches)
    (text,) = differences(batches)
    assert text.startswith("Batches draws random numbers in 2 threads")
    assert "workers=1" in text
    assert (_states(batches) == states) == (draw is not DRAWING["TensorFlow"])
    assert differences(Batches(draw, workers=1)) == []


def _states(batches):
    return [pickle.dumps(read()) for read, _ in pipelines._states(batches)]


def test_workers_that_do_not_draw_hear_nothing():
    by_index = Batches(lambda dataset, index: np.random.default_rng([7, index]).random(), workers=3)
    assert differences(by_index) == []
    (text,) = differences(Batches(DRAWING["NumPy"], use_multiprocessing=True))
    assert "in 1 processes" in text


def test_examples_in_docstrings():
    for module in (dealing, pipelines):
        result = doctest.testmod(module)
        assert (result.attempted > 0, result.failed) == (True, 0)


def test_too_few_elements():
    with pytest.raises(ValueError, match="2 elements cannot be dealt to 3 groups"):
        dealing.even(tf.data.Dataset.range(2), 3)
    unknown = tf.data.Dataset.range(7).filter(lambda x: x > 1)
    assert dealing.even(unknown, 3) == (unknown, 0)
    endless = tf.data.Dataset.range(7).repeat()
    assert dealing.even(endless, 3) == (endless, 0)
