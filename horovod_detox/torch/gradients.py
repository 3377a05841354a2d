"""From the last gradient of a backward pass to the update: when and how a model is exchanged."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from typing import Any

import torch

from horovod_detox.drill import DrilledEngine
from horovod_detox.engine import Engine
from horovod_detox.exchange.step import NoMajority, Postponed
from horovod_detox.frontend.context import Engines
from horovod_detox.frontend.overlap import Overlap
from horovod_detox.packing.layout import Layout
from horovod_detox.packing.torch import Packing, SignPacking, packing_of
from horovod_detox.torch import passes

_numbers = count()


class GradientExchange:
    """Watch the parameters of an optimizer and replace their gradients by the update.

    The exchange takes place at the end of a backward pass, before `backward()` returns. So
    clipping, GradScaler and closures see the update, on every rank. Where a batch has left
    parameters out, their gradients count as zero. When that is so in most groups, the pass is not
    the last of the step, and the exchange is postponed to the end of another, or to
    `synchronize()`. Large gradients leave part by part before, and the update comes part by part.

    Args:
        engines: makes the engines of this optimizer.
        named_parameters: the current (name, parameter) pairs of the optimizer.
        compression: of Horovod's kind: `compress` and `decompress`, element by element.
        passes: backward passes per step; gradients are summed locally until the last.
        factor: what the update is multiplied by.
        ranks: who exchanges.

    Attributes:
        number, ranks, together: see `passes.Exchange`.
    """

    def __init__(
        self,
        engines: Engines,
        named_parameters: Callable[[], list[tuple[str, torch.Tensor]]],
        compression: Any,
        passes: int,
        factor: float,
        ranks: Iterable[int],
    ) -> None:
        self.number, self.ranks = next(_numbers), frozenset(ranks)
        self.together: set[Any] = set()
        self._engines = engines
        self._engine = engines.make_for_gradients(factor=factor, skips=True)
        self._failure: NoMajority | None = None
        self._holds_update = False
        self._loss_engine: Engine | None = None
        self._named_parameters = named_parameters
        self._compression = compression
        self._factor = factor
        self._delays: dict[torch.Tensor, int] = {}
        self._waiting: set[torch.Tensor] = set()
        self._hooks: dict[torch.Tensor, Any] = {}
        self._overlap: Overlap | None = None
        self.set_passes(passes)
        self.watch()

    def set_passes(self, passes: int) -> None:
        """Set the number of backward passes per step."""
        self._passes = passes
        self.reset()

    def reset(self) -> None:
        """Forget what was computed since the last step."""
        if self._overlap is not None:
            self._overlap.abandon()
        passes.forget(self)
        self._delays = dict.fromkeys(self._delays, self._passes)
        self._waiting = set(self._delays)
        self._exchanged = self._is_postponed = False
        self._to_be_skipped = False

    def watch(self) -> None:
        """Register hooks on parameters that need gradients and have none yet."""
        new = [
            (name, parameter)
            for name, parameter in self._named_parameters()
            if parameter.requires_grad and parameter not in self._delays
        ]
        if new and self._overlap is not None:
            self._overlap.abandon()
        for _, parameter in new:
            self._hooks[parameter] = parameter.register_post_accumulate_grad_hook(self._on_gradient)
            self._delays[parameter] = self._passes
            self._waiting.add(parameter)
        if new or not self._delays:
            watched = [pair for pair in self._named_parameters() if pair[1] in self._delays]
            self._packing = packing_of(watched, self._compression)
            self._overlap = self._overlap_of(self._packing)

    @property
    def started(self) -> bool:
        """Return whether a gradient was computed since the last step."""
        return len(self._waiting) < len(self._delays) or any(
            delay != self._passes for delay in self._delays.values()
        )

    @property
    def pending(self) -> bool:
        """Return whether gradients of a whole step await their exchange."""
        return any(delay <= 0 for delay in self._delays.values()) and not self._exchanged

    @property
    def ended(self) -> bool:
        """Return whether the gradients are the update, of a step that was not made yet."""
        return self._exchanged

    def check_update(self) -> None:
        """Raise unless the gradients are the update of an exchange, as no other came since."""
        if not self._holds_update:
            raise RuntimeError(
                "step() in skip_synchronize(), but the gradients have not been exchanged: call "
                "synchronize() before, or step() without skip_synchronize()"
            )

    def count_step(self) -> None:
        """Note that the optimizer has stepped."""
        tally = self._engine.tally
        tally.steps = (tally.steps or 0) + 1

    def take_failure(self) -> NoMajority | None:
        """Return why the step after the latest exchange is to be skipped, once; None: it is not."""
        failure, self._failure = self._failure, None
        return failure

    def synchronize(self) -> None:
        """Replace the gradients by the update, unless that was done in the backward pass."""
        while not self._exchanged:
            with suppress(Postponed):  # the other ranks are in a backward pass
                self._run(is_complete=True)
        self.reset()

    def agree_on(self, loss: Any) -> Any:
        """Return the aggregate of the ranks' losses, of the same kind as `loss`."""
        if loss is None:
            return None
        if self._loss_engine is None:
            self._loss_engine = self._engines.make_for_losses()
        layout = Layout((("loss of the closure", (1,), "float64"),))
        value = torch.as_tensor(loss).detach().to("cpu", torch.float64).reshape(1)
        outcome = self._loss_engine.exchange(value.view(torch.int64), layout)
        update = outcome.update.view(torch.float64)
        if isinstance(loss, torch.Tensor):
            return update.to(loss).reshape(loss.shape)
        return update.item()

    def end_pass(self) -> bool:
        """Exchange at the end of a backward pass; return whether that took place."""
        if self._exchanged:
            return False
        try:
            self._run(self._is_complete())
        except Postponed:
            self._is_postponed = True
            passes.postpone(self)
        return self._exchanged

    def _is_complete(self) -> bool:
        """Return whether all gradients of a step are there."""
        has_any = any(delay <= 0 for delay in self._delays.values())
        return has_any and not any(waiting.requires_grad for waiting in self._waiting)

    def _run(self, is_complete: bool) -> None:
        """Exchange the gradients as they are.

        Args:
            is_complete: whether they are all there.

        Raises:
            Postponed: on every rank, when too many lack some.
        """
        self.watch()
        layout = self._packing.layout
        if not layout.parameters:
            raise ValueError("no parameter of the optimizer requires a gradient: nothing to train")
        if self._overlap is not None and not self._engine.presence.some_have_joined:
            outcome = self._overlap.finish(is_complete)
        else:
            copy, update = self._packing.pack(), self._packing.update
            outcome = self._engine.exchange(copy, layout, update, is_complete)
            self._packing.unpack(outcome.update, self._factor)
        self._exchanged = self._holds_update = True
        self._failure = outcome.failure
        self._to_be_skipped = not outcome.is_finite

    def _overlap_of(self, packing: Packing | SignPacking) -> Overlap | None:
        """Return how to exchange the gradient part by part; None: as a whole."""
        engine = self._engine
        if isinstance(engine, DrilledEngine) or isinstance(packing, SignPacking):
            return None
        return (
            Overlap(engine, packing, self._factor)
            if len(engine.parts(packing.layout)) > 1
            else None
        )

    def _on_gradient(self, parameter: torch.Tensor) -> None:
        """Count a gradient; after the last of one parameter, exchange at the end of the pass."""
        if parameter.grad is not None and parameter.grad.requires_grad:
            raise AssertionError(
                "gradients of gradients cannot be exchanged: call backward() without create_graph"
            )
        if self._to_be_skipped:
            self.reset()
        is_known = self._delays[parameter] <= 0
        if is_known and self._is_postponed and self._is_complete():  # other than most ranks
            passes.touch(self)
            return
        if is_known:
            raise AssertionError(
                "Gradients were computed more than backward_passes_per_step times before call "
                "to step(). Increase backward_passes_per_step to accumulate gradients locally."
            )
        if self._exchanged:
            raise RuntimeError(
                f"the gradient of {self._name_of(parameter)} came after the exchange of this step: "
                "most ranks of some group had all of theirs in an earlier backward pass. Call "
                "backward() equally often on every rank"
            )
        self._holds_update = False
        self._delays[parameter] -= 1
        if self._delays[parameter] == 0:
            self._waiting.discard(parameter)
            all_take_part = not self._engine.presence.some_have_joined
            if self._overlap is not None and all_take_part and self._is_last_hook(parameter):
                self._overlap.add(parameter)
            passes.touch(self)

    def _name_of(self, parameter: torch.Tensor) -> str:
        return next(name for name, p in self._named_parameters() if p is parameter)

    def _is_last_hook(self, parameter: torch.Tensor) -> bool:
        """Return whether no hook after ours may change the gradient."""
        hooks = parameter._post_accumulate_grad_hooks
        return next(reversed(hooks)) == self._hooks[parameter].id
