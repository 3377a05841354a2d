"""Keras's `fit`, taken over for models whose optimizer exchanges gradients."""

import inspect
from typing import Any

import keras

from horovod_detox.tensorflow.data.pipelines import differences
from horovod_detox.tensorflow.epochs import AgreeFirst, StopTogether, Team


def fit_together(fit: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """Call `fit` of Keras so that it keeps the ranks together, if the model trains with others."""
    team = team_of(model)
    if team is None:
        return fit(model, *args, **kwargs)
    given = inspect.signature(fit).bind(model, *args, **kwargs)
    _warn_of_data(given.arguments.get("x"), team)
    given.arguments["callbacks"] = _surround(given.arguments.get("callbacks"), model, team)
    try:
        return fit(*given.args, **given.kwargs)
    finally:
        team.presence.forget_wishes()


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
