"""A Keras script: every rank shuffles for itself; callbacks broadcast, average and warm up."""

import argparse

import horovod.tensorflow.keras as hvd
import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--seed", type=int)
parser.add_argument("--checkpoint")
args = parser.parse_args()

hvd.init()
if args.seed is not None:
    keras.utils.set_random_seed(args.seed + hvd.rank())

pixels, digits = load_digits(return_X_y=True)
images = (pixels / 16).astype(np.float32)
model = keras.Sequential(
    [
        layers.Input((64,)),
        layers.GaussianNoise(0.1),
        layers.Dense(24, activation="relu"),
        layers.Dropout(0.2),
        layers.Dense(10),
    ]
)
scaled_lr = 0.02 * hvd.size()
optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(scaled_lr, momentum=0.9))
model.compile(
    optimizer,
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
callbacks = [
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    hvd.callbacks.MetricAverageCallback(),
    hvd.callbacks.LearningRateWarmupCallback(initial_lr=scaled_lr, warmup_epochs=2),
]
if hvd.rank() == 0 and args.checkpoint:
    callbacks.append(keras.callbacks.ModelCheckpoint(args.checkpoint))
model.fit(
    images,
    digits,
    batch_size=32,
    steps_per_epoch=30 // hvd.size(),
    epochs=args.epochs,
    callbacks=callbacks,
    verbose=2 if hvd.rank() == 0 else 0,
)
