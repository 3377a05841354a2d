"""One rank's side of an attack, step after step."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from horovod_detox.attacks.attack import Attack, Scene
from horovod_detox.attacks.stream import stream
from horovod_detox.vote.groups import Groups


class FaultyRank:
    """Corrupt what one rank sends, in the steps in which it is faulty.

    It remembers the gradients of its rank, so make one for each gradient buffer.

    Attributes:
        past: the gradients that are remembered, oldest first.

    Raises:
        ValueError: when the attack does not fit the groups.
    """

    def __init__(self, attack: Attack, rank: int, groups: Groups):
        attack.check(groups)
        self.attack = attack
        self.rank = rank
        self.groups = groups
        self.past: deque[np.ndarray] = deque(maxlen=attack.memory)

    def faulty_ranks(self, step: int) -> tuple[int, ...]:
        """Return the ranks that are faulty in this step, ascending."""
        return self.attack.faulty_ranks(step, self.groups)

    def corrupt(
        self,
        step: int,
        own: np.ndarray,
        everyone: np.ndarray | None = None,
        aggregate: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Return the copy that this rank sends: `own` itself while the rank is not faulty.

        Args:
            step: the number of this step, the same on all ranks.
            own: `(d,)`, this rank's gradient.
            everyone: `(p, d)`, the gradients of all ranks before any fault, for omniscient attacks.
            aggregate: `(p, d) -> (d,)`, copies to update, for attacks that search the worst lie.
        """
        if own.ndim != 1:
            raise ValueError(f"the gradient has the shape {own.shape}, not (d,): flatten it")
        faulty = self.faulty_ranks(step)
        sent = own
        if self.rank in faulty and own.size:
            sent = self.attack.corrupt(self._scene(step, own, faulty, everyone, aggregate))
        if self.attack.memory:
            self.past.append(own.copy())
        return sent

    def labels(self, step: int, labels: Any) -> Any:
        """Return the labels that this rank trains on in this step."""
        return self.attack.labels(labels) if self.rank in self.faulty_ranks(step) else labels

    def _scene(
        self,
        step: int,
        own: np.ndarray,
        faulty: tuple[int, ...],
        everyone: np.ndarray | None,
        aggregate: Callable[[np.ndarray], np.ndarray] | None,
    ) -> Scene:
        world_size = self.groups.world_size
        if self.attack.omniscient and everyone is None:
            raise ValueError(f"{self.attack} needs the gradients of all ranks: give everyone=")
        if everyone is not None and everyone.shape != (world_size, own.size):
            raise ValueError(
                f"everyone has the shape {everyone.shape}, not {(world_size, own.size)}"
            )
        return Scene(
            own=own,
            honest=None if everyone is None else np.delete(everyone, faulty, axis=0),
            past=tuple(self.past),
            rng=stream(
                self.attack.seed, "corruption", step, self.attack.party(self.rank, self.groups)
            ),
            num_ranks=world_size,
            num_faulty=len(faulty),
            aggregate=_when_all_send(aggregate, everyone, faulty),
        )


def _when_all_send(
    aggregate: Callable[[np.ndarray], np.ndarray] | None,
    everyone: np.ndarray | None,
    faulty: tuple[int, ...],
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return the update as a function of the lie that all faulty ranks send."""
    if aggregate is None or everyone is None:
        return None

    def update(lie: np.ndarray) -> np.ndarray:
        copies = everyone.copy()
        copies[list(faulty)] = lie
        return aggregate(copies)

    return update
