"""Fault drills: corrupt a copy before it is exchanged, or what a rank holds between exchanges."""

import logging
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from horovod_detox.arrays.namespaces import Copy, Words, like, to_numpy
from horovod_detox.attacks import Attack, FaultyRank, FlipState
from horovod_detox.attacks.stream import stream
from horovod_detox.config import Plan
from horovod_detox.engine import Engine
from horovod_detox.exchange.collectives import NOTHING, Collectives
from horovod_detox.exchange.reference import aggregate_copies
from horovod_detox.exchange.step import NoMajority, Outcome
from horovod_detox.packing.bits import bits_of_numpy, words_of_numpy
from horovod_detox.packing.layout import SIGN, Layout
from horovod_detox.replicas.pieces import Piece
from horovod_detox.replicas.replicas import Held
from horovod_detox.replicas.upkeep import FIRST
from horovod_detox.vote.groups import Groups

MOST_TRIALS = 1000
"""So often another bit is tried where one does not stay: it is padding, or would be refused."""
MOST_TOLD = 10
"""So many names are told where the one that was given is not known."""

log = logging.getLogger("horovod_detox")


class CopyDrill:
    """What an attack makes of the copies of one rank, each flat buffer by itself.

    An attack sees signs as the numbers 1 and -1, and of what it sends only the signs leave.

    Attributes:
        liars: the faulty rank as every flat buffer sees it, once there was a copy.

    Raises:
        ValueError: when the attack does not fit the groups.
    """

    def __init__(self, attack: Attack, rank: int, plan: Plan) -> None:
        attack.check(plan.groups)
        self._attack, self._rank, self._plan = attack, rank, plan
        self.liars: list[FaultyRank] = []

    def corrupt(
        self, step: int, copy: Copy, layout: Layout, everyone: Sequence[np.ndarray] | None = None
    ) -> Copy:
        """Return the copy that this rank sends: `(w,) -> (w,)` words; an honest one as it is.

        Args:
            step: the number of this step, the same on all ranks.
            copy: of this rank; left as it is.
            layout: what the words are.
            everyone: for omniscient attacks, each flat buffer of all ranks, `(p, length)`.
        """
        segments = layout.buffers.segments
        if len(self.liars) != len(segments):
            self.remember([[]] * len(segments))
        lie = to_numpy(copy).copy()
        for i, (buffer, own) in enumerate(
            zip(layout.typed(lie), numbers(layout, copy), strict=True)
        ):
            theirs = None if everyone is None else everyone[i]
            sent = self.liars[i].corrupt(step, own, theirs, self._update_of)
            buffer[:] = words_of_numpy(sent >= 0) if segments[i].dtype == SIGN else sent
        return like(copy, lie)

    def remember(self, pasts: Sequence[Sequence[np.ndarray]]) -> None:
        """Begin with these gradients of earlier steps, oldest first, of each flat buffer."""
        self.liars = [FaultyRank(self._attack, self._rank, self._plan.groups) for _ in pasts]
        for liar, past in zip(self.liars, pasts, strict=True):
            liar.past.extend(past)

    def _update_of(self, copies: np.ndarray) -> np.ndarray:
        """Compute what the job would make of these copies: `(p, n) -> (n,)`."""
        layout = Layout((("buffer", copies.shape[1:], copies.dtype.name),))
        words = [layout.pack([copy]) for copy in copies]
        try:
            outcome = aggregate_copies(self._plan, layout.buffers, words)
        except NoMajority:
            return np.full_like(copies[0], np.nan)
        return layout.typed(outcome.update)[0]


def numbers(layout: Layout, copy: Copy) -> list[np.ndarray]:
    """Return copies of the flat buffers, signs as numbers: `(w,)` words -> `[(length,), ...]`."""
    return [
        _signs(buffer, segment.length) if segment.dtype == SIGN else buffer.copy()
        for buffer, segment in zip(
            layout.typed(to_numpy(copy)), layout.buffers.segments, strict=True
        )
    ]


def _signs(words: Words, length: int) -> np.ndarray:
    """Return the first signs of words as numbers: `(w,) -> (length,)` of 1 and -1 in float32."""
    return 2 * bits_of_numpy(words, length).astype(np.float32) - 1


class StateDrill:
    """What a fault makes of what one rank holds, between two exchanges.

    Raises:
        ValueError: when the fault does not fit the groups, or is over before ranks have compared.
    """

    def __init__(self, fault: FlipState, rank: int, groups: Groups, held: Held) -> None:
        fault.check(groups)
        if fault.steps is not None and max(fault.steps) <= FIRST:
            raise ValueError(
                f"flip_state: steps = {fault.steps}: ranks compare what they hold in step {FIRST} "
                f"for the first time; choose step {FIRST + 1} or a later one"
            )
        self._fault, self._rank, self._groups, self._held = fault, rank, groups, held

    def strike(self, step: int) -> None:
        """Flip a bit before the gradient of a step is computed, if this rank is faulty in it.

        All ranks come here. In a traced function it is done when that is over.

        Raises:
            ValueError: on every rank, when nothing is held of what is to be struck.
        """
        faulty = self._fault.faulty_ranks(step, self._groups) if step > FIRST else ()
        if not faulty:
            return

        def strike() -> None:
            pieces = self._pieces()
            if self._rank in faulty:
                rng = stream(self._fault.seed, "corruption", step, self._rank)
                key = self._flip(pieces, rng)
                log.info("drill: rank %d flipped a bit of %s before step %d", self._rank, key, step)

        if self._held.is_readable():
            strike()
        else:
            self._held.when_readable(strike)

    def _pieces(self) -> list[Piece]:
        """Return what may be struck."""
        held = self._held.pieces()
        kind, _, part = self._fault.of.partition("/")
        of_kind = [piece for piece in held if piece.kind == kind]
        found = [piece for piece in of_kind if part in piece.name]
        if not found:
            names = sorted(piece.key for piece in of_kind) or sorted({each.kind for each in held})
            more = f" and {len(names) - MOST_TOLD} more" if len(names) > MOST_TOLD else ""
            raise ValueError(
                f"flip_state: no {self._fault.of} is held; there is "
                f"{', '.join(names[:MOST_TOLD])}{more}"
            )
        return found

    def _flip(self, pieces: Sequence[Piece], rng: np.random.Generator) -> str:
        """Flip a bit, every one of all pieces as likely as another; return where."""
        lengths = np.array([len(piece.read()) for piece in pieces], float)
        for _ in range(MOST_TRIALS if lengths.any() else 0):
            piece = pieces[rng.choice(len(pieces), p=lengths / lengths.sum())]
            words = piece.read()
            before = to_numpy(words).copy()
            after = self._fault.flipped(before, rng)
            with suppress(ValueError, OverflowError, RuntimeError):
                piece.write(like(words, after.copy()))
            if np.array_equal(to_numpy(piece.read()), after):
                return piece.key
            piece.write(like(words, before))
        raise ValueError(f"flip_state: no bit of {self._fault.of} can be flipped")


class DrilledEngine:
    """An engine that lets an attack corrupt this rank's copies, or a fault what it holds.

    Raises:
        ValueError: when the attack does not fit the groups, or nobody would find the fault.
    """

    def __init__(self, engine: Engine, attack: Attack, collectives: Collectives) -> None:
        self._engine = engine
        self._attack = attack
        self._collectives = collectives
        self._drill = CopyDrill(attack, collectives.rank, engine.plan)
        self._fault = self._state_drill(attack) if isinstance(attack, FlipState) else None
        self.presence, self.tally, self.scrub = engine.presence, engine.tally, engine.scrub

    def exchange(
        self,
        copy: Copy,
        layout: Layout,
        update: Words | None = None,
        is_complete: bool = True,
    ) -> Outcome:
        """Corrupt the copy if this rank lies now, and exchange it: see `Engine.exchange`.

        An omniscient attack makes all ranks gather all copies: traffic that only drills have.
        """
        if self._fault is not None:
            outcome = self._engine.exchange(copy, layout, update, is_complete)
            self._fault.strike(self._engine.step)
            return outcome
        everyone = self._gather(copy, layout) if self._attack.omniscient else None
        sent = self._drill.corrupt(self._engine.step, copy, layout, everyone)
        return self._engine.exchange(sent, layout, update, is_complete)

    def _state_drill(self, fault: FlipState) -> StateDrill:
        upkeep, plan = self._engine.upkeep, self._engine.plan
        if upkeep is None:
            raise ValueError(
                "flip_state: nobody compares what ranks hold here, so that nobody would find it: "
                "there is a tolerance, or groups have one member, or no variable is trained"
            )
        if not plan.config.scrub_every and self._collectives.rank == 0:
            log.warning(
                "drill: with scrub_every=0 only hvd.scrub() finds what shows in no gradient"
            )
        return StateDrill(fault, self._collectives.rank, plan.groups, upkeep.held)

    def _gather(self, copy: Copy, layout: Layout) -> list[np.ndarray]:
        """Return each flat buffer of all ranks, `(p, length)`."""
        received = self._collectives.allgather_words("drill", NOTHING, copy).wait()
        return stack_numbers(layout, [message.words for message in received])


def stack_numbers(layout: Layout, copies: Sequence[Copy]) -> list[np.ndarray]:
    """Return each flat buffer of all p copies: p times `(w,)` words -> `[(p, length), ...]`."""
    buffers = zip(*(numbers(layout, copy) for copy in copies), strict=True)
    return [np.stack(rows) for rows in buffers]
