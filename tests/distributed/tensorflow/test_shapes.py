"""Scripts as people write them: each is run as it is, and with a liar in every group.

A script trains a model and returns it. Particular to this package are its import and `hvd.group()`
where others deal data by `hvd.rank()`. docs/scripts.md has what is refused, and finer points.
"""

import os
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import horovod_detox.tensorflow as hvd
from horovod_detox.keras import callbacks, load_model
from tests.distributed.tensorflow.training import batches, digest, everywhere, loss_function

LIARS = {3: (0,), 6: (0, 5)}  # of groups (0, 1, 2), or (0, 2, 4) and (1, 3, 5)
SIZES = LIARS if "SOAK" in os.environ else (3,)  # to trace functions takes half a minute a rank
SCRIPTS = []


def script(function):
    SCRIPTS.append(function)
    return function


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")  # of the other expert
@pytest.mark.ranks(*SIZES)
@pytest.mark.parametrize("train", SCRIPTS, ids=lambda train: train.__name__)
def test_a_liar_changes_no_bit_and_is_named(start, monkeypatch, train):
    start(group_size=3)
    expected = digest_of_weights(train())
    assert hvd.fault_report().dissents == {}
    assert set(everywhere(expected)) == {expected}
    liars = LIARS[hvd.size()]
    ranks = ",".join(map(str, liars))
    monkeypatch.setenv("HOROVOD_DETOX_ATTACK", f"reverse(scale=100)@{ranks}")
    keras.utils.clear_session(free_memory=False)
    start(group_size=3)
    assert digest_of_weights(train()) == expected
    assert hvd.fault_report().dissents.keys() == {*liars}
    assert hvd.fault_report().steps > 0


def digest_of_weights(model):
    """Return a digest of what is trained: BatchNorm's statistics are those of a group's batches."""
    return digest(type("Trained", (), {"weights": model.trainable_weights}))


def new_model(*more):
    """Return the same network on every rank."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, activation="tanh"), *more, keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((5,)), *layers])


def sgd(**options):
    """Return a distributed optimizer."""
    return hvd.DistributedOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), **options)


def data(steps=4):
    """Return samples and labels of this rank's group: so many batches of 16."""
    return batches(steps, hvd.group())


def pipeline(steps=4):
    """Return the batches of this rank's group, as a dataset."""
    return tf.data.Dataset.from_tensor_slices(data(steps)).batch(16)


def fit(model, **options):
    model.fit(*data(), batch_size=16, verbose=0, **options)
    return model


@script
def fit_with_every_callback():
    model = new_model(keras.layers.BatchNormalization(), keras.layers.Dropout(0.2, seed=1))
    model.compile(sgd(), loss_function, metrics=["accuracy"])
    return fit(
        model,
        epochs=2,
        validation_split=0.25,
        callbacks=[
            callbacks.BroadcastGlobalVariablesCallback(0),
            callbacks.MetricAverageCallback(),
            callbacks.LearningRateWarmupCallback(0.1, warmup_epochs=1),
            keras.callbacks.ReduceLROnPlateau(patience=0, min_delta=10.0),
            keras.callbacks.EarlyStopping(patience=3),
            keras.callbacks.TerminateOnNaN(),
        ],
    )


@script
def fit_on_a_shard_with_augmentation():
    inputs, labels = batches(4, 0)
    elements = hvd.shard(tf.data.Dataset.from_tensor_slices((inputs, labels))).shuffle(64, seed=1)
    noise = keras.layers.GaussianNoise(0.1, seed=2)
    model = new_model()
    model.compile(sgd(), loss_function)
    elements = elements.batch(8).map(lambda x, y: (noise(x, training=True), y))
    model.fit(elements, shuffle=False, verbose=0)
    return model


@script
def several_steps_per_execution():
    model = new_model()
    model.compile(sgd(), loss_function, steps_per_execution=2)
    return fit(model)


@script
def accumulation_as_keras_has_it():
    model = new_model()
    base = keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)
    model.compile(hvd.DistributedOptimizer(base), loss_function)
    return fit(model)


@script
def accumulation_as_horovod_has_it():
    model = new_model()
    model.compile(sgd(backward_passes_per_step=2), loss_function)
    return fit(model)


@script
def clipping_a_schedule_and_averaged_weights():
    model = new_model()
    rate = keras.optimizers.schedules.CosineDecay(0.1, decay_steps=4)
    base = keras.optimizers.AdamW(rate, clipnorm=0.1, use_ema=True, ema_momentum=0.5)
    model.compile(hvd.DistributedOptimizer(base), loss_function)
    return fit(model)


@script
def mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = new_model()
        base = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**8)
        model.compile(hvd.DistributedOptimizer(base), loss_function)
        return fit(model)
    finally:
        keras.mixed_precision.set_global_policy("float32")


@script
def an_optimizer_for_each_kind_of_layer():
    model = new_model()
    inner = {True: keras.optimizers.SGD(0.1), False: keras.optimizers.Adam(0.01)}
    base = keras.optimizers.MultiOptimizer(lambda variable: inner["kernel" in variable.path])
    model.compile(hvd.DistributedOptimizer(base), loss_function)
    return fit(model)


class OwnStep(keras.Sequential):
    """A model that says itself what a step is."""

    def train_step(self, data):
        inputs, labels = data
        with tf.GradientTape() as tape:
            loss = loss_function(labels, self(inputs, training=True))
            loss += 0.01 * tf.reduce_sum(self.layers[0].kernel ** 2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


@script
def own_train_step():
    keras.utils.set_random_seed(0)
    model = OwnStep([keras.Input((5,)), keras.layers.Dense(8), keras.layers.Dense(3)])
    model.compile(sgd())
    return fit(model)


@script
def loop_with_an_optimizer():
    model, optimizer = new_model(), sgd()

    @tf.function
    def step(inputs, labels):
        with tf.GradientTape() as tape:
            loss = loss_function(labels, model(inputs))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    for inputs, labels in pipeline():
        step(inputs, labels)
    return model


@script
def loop_with_a_tape():
    """As in Horovod's example, which broadcasts after the first step."""
    model, optimizer = new_model(), keras.optimizers.SGD(0.1)

    @tf.function
    def step(inputs, labels):
        with tf.GradientTape() as tape:
            loss = loss_function(labels, model(inputs))
        tape = hvd.DistributedGradientTape(tape)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    for number, (inputs, labels) in enumerate(pipeline()):
        step(inputs, labels)
        if number == 0:
            hvd.broadcast_variables(model.variables, root_rank=0)
            hvd.broadcast_variables(optimizer.variables, root_rank=0)
    return model


@script
def early_stopping():
    model, optimizer = new_model(), keras.optimizers.SGD(0.1)
    best = float("inf")
    inputs_to_validate, labels_to_validate = batches(1, 100)  # the same on all ranks
    for inputs, labels in pipeline(10):
        with hvd.DistributedGradientTape(tf.GradientTape()) as tape:
            loss = loss_function(labels, model(inputs))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        loss = float(loss_function(labels_to_validate, model(inputs_to_validate)))
        if hvd.agree(loss > best):
            break
        best = loss
    return model


@script
def clipping_what_a_tape_returns():
    model, optimizer = new_model(), keras.optimizers.SGD(0.1)
    for inputs, labels in pipeline():
        with tf.GradientTape() as tape:
            loss = loss_function(labels, model(inputs))
        gradients = hvd.DistributedGradientTape(tape).gradient(loss, model.trainable_variables)
        gradients, _ = tf.clip_by_global_norm(gradients, 0.1)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return model


@script
def adversarial_networks():
    generator = new_model()
    critic = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    of_generator, of_critic = sgd(), sgd()

    @tf.function
    def step(inputs, labels):
        real = tf.one_hot(labels, 3)
        with tf.GradientTape(persistent=True) as tape:
            made = generator(inputs)
            loss_of_critic = tf.reduce_mean(critic(made)) - tf.reduce_mean(critic(real))
            loss_of_generator = -tf.reduce_mean(critic(made))
        of_critic.apply(
            tape.gradient(loss_of_critic, critic.trainable_variables), critic.trainable_variables
        )
        of_generator.apply(
            tape.gradient(loss_of_generator, generator.trainable_variables),
            generator.trainable_variables,
        )

    for inputs, labels in pipeline():
        step(inputs, labels)
    return keras.Sequential([generator, critic])


@script
def gradient_penalty():
    model, optimizer = new_model(), keras.optimizers.SGD(0.1)
    for inputs, labels in pipeline():
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(inputs)
                loss = loss_function(labels, model(inputs))
            loss += tf.reduce_sum(inner.gradient(loss, inputs) ** 2)
        gradients = hvd.DistributedGradientTape(tape).gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return model


@script
def embeddings():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Embedding(4, 3)])
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(3))
    model.compile(hvd.DistributedOptimizer(keras.optimizers.Adam(0.01)), loss_function)
    labels = data()[1]
    model.fit(np.stack([labels, labels + 1], axis=1), labels, batch_size=16, verbose=0)
    return model


@script
def mixture_of_experts():
    keras.utils.set_random_seed(0)
    experts = [keras.layers.Dense(3) for _ in range(2)]
    for expert in experts:
        expert.build((None, 5))
    variables = [variable for expert in experts for variable in expert.trainable_variables]
    optimizer = keras.optimizers.SGD(0.1)
    for number, (inputs, labels) in enumerate(pipeline()):
        with tf.GradientTape() as tape:
            loss = loss_function(labels, experts[(number + hvd.group()) % 2](inputs))
        gradients = hvd.DistributedGradientTape(tape).gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return keras.Sequential(experts[:1])


@script
def a_head_that_is_trained_first():
    model = new_model()
    model.layers[0].trainable = False
    model.compile(sgd(), loss_function)
    fit(model)
    model.layers[0].trainable = True
    model.compile(sgd(), loss_function)
    return fit(model)


@script
def resuming_from_a_checkpoint():
    """Rank 0 has the file; the others build the model, and are told its weights."""
    model = new_model()
    model.compile(sgd(), loss_function)
    fit(model)
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/model.keras"
        model.save(file)
        if hvd.rank() == 0:
            model = load_model(file)
        else:
            model = new_model()
            model.compile(sgd(), loss_function)
    return fit(model, callbacks=[callbacks.BroadcastGlobalVariablesCallback(0)])
