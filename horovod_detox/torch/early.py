"""Which gradients may leave during a backward pass: those that nothing changes any more."""

from collections.abc import Collection

import torch

from horovod_detox.torch import passes


class EarlyGradients:
    """The gradients of one exchange that have left before the end of their pass.

    Hooks of the script may change any gradient, whenever they run: with them, none leaves early.
    """

    def __init__(self) -> None:
        self._pass = passes.NONE
        self._is_allowed = False
        self._left: dict[torch.Tensor, tuple[torch.Tensor | None, int]] = {}

    @property
    def any_left(self) -> bool:
        """Return whether gradients have left in a pass that has not ended well yet."""
        return bool(self._left)

    def has_left(self, parameter: torch.Tensor) -> bool:
        """Return whether a gradient has left in the current pass, or one around it."""
        return parameter in self._left and not self.is_new_pass()

    def is_new_pass(self) -> bool:
        """Return whether the current pass is not known, and not inside of another."""
        return passes.number() != self._pass and not passes.is_inside_of_another()

    def begin(self, parameters: Collection[torch.Tensor]) -> None:
        """Begin a pass, before any of its gradients leaves.

        Args:
            parameters: all of the exchange, each with a hook of ours.
        """
        self._pass = passes.number()
        self._is_allowed = not any(map(_has_other_hooks, parameters))

    def may_leave(self, parameter: torch.Tensor) -> bool:
        """Return whether no hook, and no pass inside of this one, may change the gradient."""
        is_ours = self._is_allowed and passes.number() == self._pass
        return is_ours and not _has_other_hooks(parameter)

    def leaves(self, parameter: torch.Tensor) -> None:
        """Note that the gradient of a parameter leaves as it is."""
        gradient = parameter.grad
        if gradient is None or gradient.is_sparse:  # which the update does not write into
            self._left[parameter] = None, 0
        else:
            self._left[parameter] = gradient, gradient._version

    def end(self) -> list[torch.Tensor]:
        """End a pass; return the parameters whose gradients the script changed after they left.

        A pass that failed has no such gradients: the script may do with them what it wants.
        """
        left, self._left = self._left, {}
        if passes.number() != self._pass:
            return []
        return [
            parameter
            for parameter, (gradient, version) in left.items()
            if gradient is not None
            and (parameter.grad is not gradient or gradient._version != version)
        ]


def _has_other_hooks(parameter: torch.Tensor) -> bool:
    return len(parameter._post_accumulate_grad_hooks) > 1  # type: ignore[attr-defined]
