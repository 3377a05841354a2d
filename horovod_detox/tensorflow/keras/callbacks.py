"""Horovod's callbacks for Keras 3, and one that writes the faults into the logs of `fit`."""

from collections.abc import Callable, Iterable
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np

from horovod_detox.exchange.sharing import share
from horovod_detox.frontend.fall_through import fall_through as _fall_through
from horovod_detox.tensorflow.context import context, reseed
from horovod_detox.tensorflow.metrics import average_over_groups
from horovod_detox.tensorflow.variables import broadcast_variables, native


class _Callback(keras.callbacks.Callback):
    """A callback in a training: Keras has set its model and parameters."""

    model: Any
    params: Any


class BroadcastGlobalVariablesCallback(_Callback):
    """Start all ranks from the root's weights and optimizer state.

    The random states of layers follow from the root's, too: alike inside a group, different across
    groups. A model that Keras builds only in the first step is broadcast after that step: call
    `seed_group` before, so that the members of a group begin with the same weights.

    Args:
        root_rank: whose variables are sent.
        device: accepted, without effect.
        local_variables: a variable, or several, that are not broadcast.
    """

    def __init__(self, root_rank: int, device: str = "", local_variables: Any = None) -> None:
        super().__init__()
        self._root_rank = root_rank
        self._local: set[Any] = set()
        self._done = False
        if not isinstance(local_variables, Iterable):
            local_variables = [] if local_variables is None else [local_variables]
        for variable in local_variables:
            self.register_local_var(variable)

    def register_local_var(self, var: Any) -> None:
        """Leave a variable as it is on every rank."""
        self._local.add(native(var).ref())

    def on_train_begin(self, logs: Any = None) -> None:
        """Broadcast a model that is built."""
        if not self._done and self.model.built:
            self.model.optimizer.build(self.model.trainable_variables)
            self._broadcast()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Broadcast a model that was built in this step."""
        if not self._done:
            self._broadcast()

    def _broadcast(self) -> None:
        variables = [
            variable
            for variable in [*self.model.variables, *self.model.optimizer.variables]
            if native(variable).ref() not in self._local
        ]
        broadcast_variables(variables, self._root_rank)
        reseed(variables)
        self._done = True


class MetricAverageCallback(_Callback):
    """Average the epoch's metrics over the groups, on every rank alike.

    Where most members of a group agree on a metric, the others do not count. All
    callbacks see averages, wherever in the list of `fit` this one is.

    Args:
        device: accepted, without effect.
    """

    averages_metrics = True

    def __init__(self, device: str = "") -> None:
        super().__init__()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Replace the metrics in the logs."""
        plan = context.session().plan()
        if plan is None or not logs:
            return
        mine = {name: float(value) for name, value in logs.items()}
        everyones = share(context.collectives("detox.metrics"), "metrics", mine)
        for name in sorted({name for theirs in everyones for name in theirs}):
            missing = [rank for rank, theirs in enumerate(everyones) if name not in theirs]
            if missing:
                raise ValueError(f"metric {name!r} is missing on ranks {missing}")
            logs[name] = average_over_groups([theirs[name] for theirs in everyones], plan.groups)


class LearningRateScheduleCallback(_Callback):
    """Multiply the initial learning rate, between two epochs.

    With `steps_per_execution` above 1 the rate of the first step of an execution is that of all.

    Args:
        initial_lr: the learning rate that is multiplied.
        multiplier: a function of the epoch, or a base b: b to the power of epochs since the start.
        start_epoch, end_epoch: the first epoch, and the one after the last; None: no end.
        staircase: change the rate at the start of epochs; if not, in every batch, with fractions of
            epochs.
        momentum_correction: accepted, without effect: Keras 3 holds momentum as a constant.
        steps_per_epoch: None: ask Keras.

    Raises:
        ValueError: when `initial_lr` is None.
    """

    def __init__(
        self,
        initial_lr: float,
        multiplier: float | Callable[[float], float],
        start_epoch: int = 0,
        end_epoch: int | None = None,
        staircase: bool = True,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__()
        if initial_lr is None:
            raise ValueError("Parameter `initial_lr` is required")
        self.initial_lr = initial_lr
        self.multiplier = multiplier
        self.start_epoch = start_epoch
        self.end_epoch = end_epoch
        self.staircase = staircase
        self.steps_per_epoch = steps_per_epoch
        self.current_epoch = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Find out how long an epoch is."""
        self.steps_per_epoch = self.steps_per_epoch or self.params.get("steps")
        if not self.staircase and not self.steps_per_epoch:
            raise ValueError("the number of steps per epoch is unknown: give steps_per_epoch")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Note the epoch."""
        self.current_epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Set the learning rate."""
        ended = self.end_epoch is not None and self.current_epoch >= self.end_epoch
        if self.current_epoch < self.start_epoch or ended:
            return
        if not self.staircase:
            assert self.steps_per_epoch is not None
            self._set(self.current_epoch + self._steps_until(batch) / self.steps_per_epoch)
        elif batch == 0:
            self._set(self.current_epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Log the learning rate as `lr`."""
        if logs is not None:
            logs["lr"] = float(np.asarray(self.model.optimizer.learning_rate))

    def _steps_until(self, batch: int) -> int:
        """Return after how many steps of the epoch it is that the rate is the one of a batch."""
        return batch

    def _set(self, epoch: float) -> None:
        if callable(self.multiplier):
            factor = self.multiplier(epoch)
        else:
            factor = self.multiplier ** (epoch - self.start_epoch)
        self.model.optimizer.learning_rate = self.initial_lr * factor


class LearningRateWarmupCallback(LearningRateScheduleCallback):
    """Raise the learning rate from `initial_lr / k` to `initial_lr`, as in Goyal et al. 2017.

    k is the number of groups, of which each adds a batch of its own.

    Args:
        initial_lr: the learning rate at the end.
        warmup_epochs: epochs until then.
        momentum_correction, steps_per_epoch: as for `LearningRateScheduleCallback`.
        verbose: 1: say when it is reached.
    """

    def __init__(
        self,
        initial_lr: float,
        warmup_epochs: int = 5,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            initial_lr,
            self._warm,
            end_epoch=warmup_epochs,
            staircase=False,
            momentum_correction=momentum_correction,
            steps_per_epoch=steps_per_epoch,
        )
        self.warmup_epochs = warmup_epochs
        self.verbose = verbose

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Say, after the last epoch, what the learning rate is."""
        super().on_epoch_end(epoch, logs)
        if epoch != self.warmup_epochs - 1:
            return
        self._set(self.warmup_epochs)  # also where epochs were shorter than steps_per_epoch
        if self.verbose and hvd.rank() == 0:
            rate = float(np.asarray(self.model.optimizer.learning_rate))
            print(f"\nEpoch {epoch + 1}: finished gradual learning rate warmup to {rate:g}.")

    def _steps_until(self, batch: int) -> int:
        """Return the steps with those of this execution: its last reaches the initial rate."""
        assert self.steps_per_epoch is not None
        return min(batch + self.model.steps_per_execution, self.steps_per_epoch)

    def _warm(self, epoch: float) -> float:
        k = context.num_groups()
        return (epoch * (k - 1) / self.warmup_epochs + 1) / k


class BestModelCheckpoint(keras.callbacks.ModelCheckpoint):
    """Save the best model so far, on rank 0.

    Args:
        monitor, verbose, save_weights_only, mode, save_freq: as for `ModelCheckpoint`.
        filepath: where to.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: Any = "epoch",
        filepath: str | None = None,
    ) -> None:
        super().__init__(
            filepath or ("best.weights.h5" if save_weights_only else "best.keras"),
            monitor,
            verbose,
            save_best_only=True,
            save_weights_only=save_weights_only,
            mode=mode,
            save_freq=save_freq,
        )

    def _save_model(self, epoch: int, batch: int | None, logs: Any) -> None:
        if hvd.rank() == 0:
            super()._save_model(epoch, batch, logs)


class FaultReportCallback(_Callback):
    """Write the totals of faults so far into the epoch's logs.

    `dissents`: copies that were outvoted; `abstentions`: groups that lost their majority, both
    summed over the exchanges; `faulty_ranks`: ranks that were ever outvoted or miscalculated.
    """

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the totals to the logs."""
        if logs is not None:
            report = context.fault_report()
            logs["dissents"] = sum(report.dissents.values())
            logs["abstentions"] = sum(report.abstentions.values())
            logs["faulty_ranks"] = len(report.dissents.keys() | report.miscalculations.keys())


__getattr__ = _fall_through(__name__)
