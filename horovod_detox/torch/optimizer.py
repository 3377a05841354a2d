"""Horovod's DistributedOptimizer with DETOX in the place of allreduce."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import horovod.torch as hvd
import torch

from horovod_detox.attacks import Attack
from horovod_detox.frontend.fall_through import fall_through
from horovod_detox.frontend.reduction import Reduction
from horovod_detox.replicas.pieces import Piece
from horovod_detox.replicas.replicas import Held
from horovod_detox.torch.compression import Compression
from horovod_detox.torch.context import context
from horovod_detox.torch.gradients import GradientExchange
from horovod_detox.torch.replicas import holdings, of_optimizer, remember_batches
from horovod_detox.torch.saving import files, note_saves
from horovod_detox.vote.work import Tally

__getattr__ = fall_through(__name__)
NamedParameters = Iterable[tuple[str, torch.Tensor]]


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: NamedParameters | None = None,
    compression: Any = hvd.Compression.none,
    backward_passes_per_step: int = 1,
    op: Any = hvd.Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: int | list[list[torch.Tensor]] | None = None,
    sparse_as_dense: bool = False,
    process_set: Any = hvd.global_process_set,
    *,
    attack: Attack | None = None,
) -> "_DistributedOptimizer":
    """Wrap an optimizer so that it steps with the robust aggregate of all groups' gradients.

    The arguments are those of `horovod.torch.DistributedOptimizer` 0.28, with these meanings.

    Args:
        optimizer: its state, defaults and hooks are kept.
        named_parameters: (name, parameter) pairs, in the same order on every rank.
        compression: one of `Compression`, or of your own: element by element, and deterministic.
        backward_passes_per_step: gradients are summed locally over so many passes.
        op: Average, or Sum: the average times the number of groups.
        gradient_predivide_factor, num_groups, groups: accepted, without effect.
        process_set: the ranks that train together; groups are formed among them.
        sparse_as_dense: accepted; sparse gradients always travel densely and come back sparse.
        attack: the fault to rehearse, the same on every rank; None: HOROVOD_DETOX_ATTACK.

    Raises:
        ValueError: for arguments that Horovod refuses, and for what cannot work (Adasum, Min,
            Max, Product; Compression.sign for a rule that needs numbers), with the reason.
    """
    reduction = Reduction(
        hvd=hvd,
        tensor_type=torch.Tensor,
        compression=compression,
        backward_passes_per_step=backward_passes_per_step,
        op=op,
        gradient_predivide_factor=gradient_predivide_factor,
        num_groups=num_groups,
        groups=groups,
        process_set=process_set,
        attack=attack,
    )
    base = type(optimizer)
    methods = {**vars(_DistributedOptimizer), "__module__": "horovod.torch.optimizer"}
    cls = type(base.__name__, (base,), methods)
    wrapped: Any = cls.__new__(cls)
    # Not the constructor, which would lose state and defaults and may need other arguments. A
    # learning-rate scheduler made earlier has put a bound `step` of the base on the instance.
    wrapped.__dict__.update({k: v for k, v in vars(optimizer).items() if k != "step"})
    wrapped._wrap(optimizer, named_parameters, reduction)
    wrapped._connect(reduction)
    return wrapped


class _DistributedOptimizer(torch.optim.Optimizer):
    """The methods that replace those of the wrapped optimizer's class.

    `super(self.__class__, self)` is the wrapped class: these functions are copied into a new
    subclass of it, one level deep, as Horovod does and as its `broadcast_optimizer_state` expects.
    """

    def _wrap(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: NamedParameters | None,
        reduction: Reduction,
    ) -> None:
        self._base: Any = optimizer
        self._parameter_names = _names(self.param_groups, named_parameters)
        self.backward_passes_per_step = reduction.backward_passes_per_step
        self.op = reduction.op
        self.process_set = reduction.process_set
        self._exchange: GradientExchange | None = None
        self._synchronized = False
        self._should_synchronize = True

    def _connect(self, reduction: Reduction) -> None:
        """Start to watch the gradients, if there is anybody to exchange them with."""
        tally = Tally(type(self).__name__)
        engines = context.engines(reduction.process_set, tally, reduction.attack)
        if engines is not None:
            if reduction.compression is Compression.sign:
                engines.plan.check_signs()
            self._exchange = GradientExchange(
                engines,
                self._named_parameters,
                reduction.compression,
                reduction.backward_passes_per_step,
                reduction.factor(len(engines.plan.groups)),
                reduction.process_set.ranks,
                Held(self._pieces, holdings.digest_of_batches, files=files),
            )
            holdings.trained.add(self)
            remember_batches(holdings)
            note_saves()

    def _pieces(self) -> list[Piece]:
        """Return what this rank holds alike with others."""
        return [*of_optimizer(self, self._named_parameters()), *holdings.pieces()]

    def _named_parameters(self) -> list[tuple[str, torch.Tensor]]:
        """Return the current (name, parameter) pairs, the last first: as they get gradients."""
        pairs = [
            (self._parameter_names.setdefault(p, f"added.{i}.{j}"), p)
            for i, param_group in enumerate(self.param_groups)
            for j, p in enumerate(param_group["params"])
        ]
        return pairs[::-1]

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Set the number of backward passes per step."""
        self.backward_passes_per_step = passes
        if self._exchange is not None:
            self._exchange.set_passes(passes)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its gradients are exchanged like all others."""
        super(self.__class__, self).add_param_group(param_group)
        if self._exchange is not None:
            self._exchange.watch()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load the state and forget gradients that await a step."""
        if self._exchange is not None:
            self._exchange.reset()
        self._synchronized = False
        super(self.__class__, self).load_state_dict(*args, **kwargs)

    def synchronize(self) -> None:
        """Replace the gradients by the update of all ranks."""
        if self._exchange is not None:
            self._exchange.synchronize()
        self._synchronized = True

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Let `step()` use the gradients as they are, after a `synchronize()` of your own."""
        self._should_synchronize = False
        try:
            yield
        finally:
            self._should_synchronize = True

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Exchange the gradients and step; with a closure, whenever it computes gradients.

        Where there is no update, as too many groups lost their majority, no rank steps.
        """
        self._base._opt_called = True  # for schedulers that were made before the wrap
        if closure is not None:
            before = self._versions()
            try:
                loss = super(self.__class__, self).step(lambda: self._evaluate(closure, before))
            except _SkippedStep as skipped:
                return skipped.loss
            self._count_step()
            return loss
        if self._should_synchronize:
            if self._synchronized and (self._exchange is None or not self._exchange.started):
                warnings.warn(
                    "optimizer.step() called without optimizer.skip_synchronize() context after "
                    "optimizer.synchronize(). The gradients are already those of all ranks and "
                    "are not exchanged again.",
                    stacklevel=2,
                )
            else:
                self.synchronize()
        elif self._exchange is not None:
            self._exchange.take_update()
        self._synchronized = False
        if self._exchange is not None and self._exchange.take_failure():
            return None
        result = super(self.__class__, self).step()
        self._count_step()
        return result

    step.hooked = True  # type: ignore[attr-defined]  # the base's step runs the step hooks

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Zero the gradients, unless they await their exchange; after it the step may be left."""
        if self._exchange is not None:
            self._exchange.clear()
        super(self.__class__, self).zero_grad(*args, **kwargs)

    def _count_step(self) -> None:
        if self._exchange is not None:
            self._exchange.count_step()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be copied or pickled: the exchange belongs to these parameters and ranks."""
        raise TypeError(
            "a DistributedOptimizer can neither be copied (copy.deepcopy) nor pickled: its "
            "exchange with the other ranks would be lost. Copy or save its state_dict(); or copy "
            "the model, make an optimizer for it, and wrap that, on every rank"
        )

    def _evaluate(self, closure: Callable[[], Any], before: list[int]) -> Any:
        """Run a closure; all ranks see the same gradients and the same loss.

        Raises:
            _SkippedStep: when there is no update, and the step has not changed anything yet.
            NoMajority: when it has, as in a line search.
        """
        loss = closure()
        if self._exchange is None:
            return loss
        has_backward = self._exchange.started
        if self._should_synchronize and (has_backward or not self._synchronized):
            self._exchange.synchronize()
        else:
            self._exchange.take_update()
        self._synchronized = False
        if failure := self._exchange.take_failure():
            if self._versions() != before:
                raise failure
            raise _SkippedStep(loss)
        if not (has_backward or self._should_synchronize):
            return loss  # for gradients that the script has synchronised already
        return self._exchange.agree_on(loss)

    def _versions(self) -> list[int]:
        """Return how often each parameter was written to."""
        return [p._version for group in self.param_groups for p in group["params"]]


class _SkippedStep(Exception):
    """Leaves an optimizer's step before it changes anything.

    Attributes:
        loss: what the closure returned on this rank.
    """

    def __init__(self, loss: Any) -> None:
        super().__init__("no update")
        self.loss = loss


def _names(
    param_groups: list[dict[str, Any]], named_parameters: NamedParameters | None
) -> dict[torch.Tensor, str]:
    """Return the name of every parameter, checked as Horovod does."""
    parameters = [
        (f"allreduce.noname.{i}.{j}", p)
        for i, param_group in enumerate(param_groups)
        for j, p in enumerate(param_group["params"])
    ]
    if not parameters:
        raise ValueError("the optimizer has no parameters")
    named = parameters if named_parameters is None else list(named_parameters)
    if not all(isinstance(pair, tuple) for pair in named):
        raise ValueError(
            "named_parameters must be (name, parameter) tuples, as from model.named_parameters()"
        )
    counts = Counter(name for name, _ in named)
    if duplicates := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"named_parameters names several parameters {', '.join(duplicates)}")
    names = {p: name for name, p in sorted(named, key=lambda pair: pair[0])}
    if unnamed := [tuple(p.shape) for _, p in parameters if p not in names]:
        raise ValueError(
            f"named_parameters leaves {len(unnamed)} parameters of the optimizer unnamed, "
            f"of shapes {', '.join(map(str, unnamed))}"
        )
    return names
