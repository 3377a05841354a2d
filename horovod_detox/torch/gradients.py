"""From the last gradient of a backward pass to the update: when and how a model is exchanged."""

from collections.abc import Callable
from itertools import count
from typing import Any

import torch

from horovod_detox.drill import DrilledEngine
from horovod_detox.engine import Engine
from horovod_detox.exchange.step import NoMajority
from horovod_detox.frontend.context import Engines
from horovod_detox.frontend.overlap import Overlap
from horovod_detox.packing.layout import Layout
from horovod_detox.packing.torch import Packing, SignPacking, packing_of

_numbers = count()
_ready: "set[GradientExchange]" = set()


def _run_after_backward(exchange: "GradientExchange") -> None:
    """Have an exchange run when the current backward pass has ended, if it ends well."""
    _ready.add(exchange)
    torch.autograd.Variable._execution_engine.queue_callback(_run_ready)


def _run_ready() -> None:
    """Run the exchanges that this backward pass completed, in the same order on every rank."""
    exchanges = sorted(_ready, key=lambda exchange: exchange.number)
    _ready.clear()
    for exchange in exchanges:
        exchange.run()


class GradientExchange:
    """Watch the parameters of an optimizer and replace their gradients by the update.

    The exchange ends when the last gradient of a backward pass is ready, before `backward()`
    returns. So clipping, GradScaler and closures see the update, on every rank. When some parameter
    got no gradient, it ends in `synchronize()` instead. Large gradients leave part by part before,
    and the update comes part by part.

    Args:
        engines: makes the engines of this optimizer.
        named_parameters: the current (name, parameter) pairs of the optimizer.
        compression: of Horovod's kind: `compress` and `decompress`, element by element.
        passes: backward passes per step; gradients are summed locally until the last.
        factor: what the update is multiplied by.
    """

    def __init__(
        self,
        engines: Engines,
        named_parameters: Callable[[], list[tuple[str, torch.Tensor]]],
        compression: Any,
        passes: int,
        factor: float,
    ) -> None:
        self.number = next(_numbers)
        self._engines = engines
        self._engine = engines.make_for_gradients(factor=factor, skips=True)
        self._failure: NoMajority | None = None
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
        _ready.discard(self)  # from a backward pass that failed
        self._delays = dict.fromkeys(self._delays, self._passes)
        self._waiting = set(self._delays)
        self._exchanged = False
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
        """Return whether gradients of a whole step await `step()` or `synchronize()`.

        An update that is not finite does not count: GradScaler skips its step.
        """
        return any(delay <= 0 for delay in self._delays.values()) and not self._to_be_skipped

    def take_failure(self) -> NoMajority | None:
        """Return why the step after the latest exchange is to be skipped, once; None: it is not."""
        failure, self._failure = self._failure, None
        return failure

    def synchronize(self) -> None:
        """Replace the gradients by the update, unless that was done in the backward pass."""
        if not self._exchanged:
            self.run()
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

    def run(self) -> None:
        """Exchange the gradients as they are."""
        self.watch()
        layout = self._packing.layout
        if not layout.parameters:
            raise ValueError("no parameter of the optimizer requires a gradient: nothing to train")
        if self._overlap is not None:
            outcome = self._overlap.finish()
        else:
            outcome = self._engine.exchange(self._packing.pack(), layout, self._packing.update)
            self._packing.unpack(outcome.update, self._factor)
        self._exchanged = True
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
        """Count a gradient; after the last one, have the exchange run at the end of backward."""
        if parameter.grad is not None and parameter.grad.requires_grad:
            raise AssertionError(
                "gradients of gradients cannot be exchanged: call backward() without create_graph"
            )
        if self._delays[parameter] <= 0:
            if self.pending:
                raise AssertionError(
                    "Gradients were computed more than backward_passes_per_step times before call "
                    "to step(). Increase backward_passes_per_step to accumulate gradients locally."
                )
            self.reset()
        self._delays[parameter] -= 1
        if self._delays[parameter] == 0:
            self._waiting.discard(parameter)
            if self._overlap is not None and self._is_last_hook(parameter):
                self._overlap.add(parameter)
            if not any(waiting.requires_grad for waiting in self._waiting):
                _run_after_backward(self)

    def _is_last_hook(self, parameter: torch.Tensor) -> bool:
        """Return whether no hook after ours may change the gradient."""
        hooks = parameter._post_accumulate_grad_hooks
        return next(reversed(hooks)) == self._hooks[parameter].id
