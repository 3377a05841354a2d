"""Keras's `fit`, taken over for models whose optimizer exchanges gradients."""

import functools
import inspect
from typing import Any

import keras

from horovod_detox.tensorflow.data.pipelines import differences
from horovod_detox.tensorflow.epochs import AgreeFirst, StopTogether, Team
from horovod_detox.tensorflow.stopping import wishes


def take_over_fit() -> None:
    """Have `fit` keep the ranks together.

    The function is replaced where it is defined, once for all models: an optimizer that is wrapped
    does not know its model.
    """
    owner = next(cls for cls in keras.Model.__mro__ if "fit" in vars(cls))
    fit = owner.fit
    if hasattr(fit, "keeps_together"):
        return
    signature = inspect.signature(fit)

    @functools.wraps(fit)
    def fit_together(self: Any, *args: Any, **kwargs: Any) -> Any:
        team = team_of(self)
        if team is None:
            return fit(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs)
        _warn_of_data(given.arguments.get("x"), team)
        given.arguments["callbacks"] = _surround(given.arguments.get("callbacks"), self, team)
        try:
            return fit(*given.args, **given.kwargs)
        finally:
            wishes.forget()

    fit_together.keeps_together = True  # type: ignore[attr-defined]
    owner.fit = fit_together


def team_of(model: Any) -> Team | None:
    """Return the ranks that an optimizer of a model exchanges with; None: with nobody."""
    for held in vars(model).values():
        optimizer = getattr(held, "inner_optimizer", held)  # of a LossScaleOptimizer
        team = getattr(optimizer, "detox_team", None)
        if isinstance(optimizer, keras.optimizers.Optimizer) and team is not None:
            return team
    return None


def _warn_of_data(data: Any, team: Team) -> None:
    """Say what will differ inside of groups before the first step does."""
    found = differences(data)
    if any(len(members) > 1 for members in team.groups.members):
        for text in found:
            team.warn(text)


def _surround(callbacks: Any, model: Any, team: Team) -> Any:
    """Return the callbacks of a call of `fit` with ours before and after them."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        theirs = [c for c in callbacks.callbacks if not isinstance(c, AgreeFirst | StopTogether)]
        callbacks.callbacks = [AgreeFirst(team, theirs), *theirs, StopTogether(team)]
        callbacks.set_model(model)
        callbacks.set_params(callbacks.params)
        return callbacks
    theirs = keras.tree.flatten(callbacks) if callbacks else []
    return [AgreeFirst(team, theirs), *theirs, StopTogether(team)]
