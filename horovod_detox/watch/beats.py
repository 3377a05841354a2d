"""What a rank tells of itself every half second, as bytes: nothing that is received is executed."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MOST_BYTES = 20_000
"""No message is longer."""
MOST_TEXT = 2_000
"""Nor is a text in it."""

STOPPED = "stopped"
RUNNING = "running"
SLEEPING = "sleeping"
IN_IO = "in I/O"
GONE = "gone"
CALM, WAITS, URGENT = b" ", b"w", b"!"
"""How a beat begins: nothing need be done, or judged, or it must be at once."""
LONG = 1.0
"""Seconds of a wait that is to be judged."""
STATES = (STOPPED, RUNNING, SLEEPING, IN_IO, GONE)
"""What a process may be doing, as its host's kernel knows it."""


class BadMessage(ValueError):
    """Bytes that no rank of this version sends."""


@dataclass(frozen=True)
class Waiting:
    """A wait for other ranks.

    Attributes:
        what: is waited in, the same on all ranks that wait for each other there.
        ranks: who has to come there; empty: all.
        seconds: since when.
        is_possible: whether the rank may compute there instead.
    """

    what: str
    ranks: tuple[int, ...]
    seconds: float
    is_possible: bool = False


@dataclass(frozen=True)
class Seen:
    """What a rank sees of another process on its host.

    Attributes:
        state: one of `STATES`.
        still: for how many seconds its main thread has used no processor time.
        hint: why it is gone, as far as the kernel tells.
    """

    state: str
    still: float = 0.0
    hint: str = ""


@dataclass(frozen=True)
class Beat:
    """What a rank tells of itself.

    Attributes:
        step: the number of exchanges so far.
        median: of the seconds from one exchange to the next; 0: not known.
        place: where its main thread is in the script.
        still: for how many seconds it has been there without using the processor.
        waiting: what it waits for; None: for nobody.
        seen: other processes of its host, by rank.
        left: why this rank leaves the job; "": it stays.
    """

    step: int = 0
    median: float = 0.0
    place: str = ""
    still: float = 0.0
    waiting: Waiting | None = None
    seen: Mapping[int, Seen] = field(default_factory=dict)
    left: str = ""

    def to_bytes(self) -> bytes:
        """Return it as JSON, behind a byte that says whether there is a need to read it."""
        kind = WAITS if self.waiting is not None and self.waiting.seconds >= LONG else CALM
        if self.left or any(seen.state == GONE for seen in self.seen.values()):
            kind = URGENT
        return kind + json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, message: bytes) -> "Beat":
        """Return what another rank has told.

        Raises:
            BadMessage: for what is none.

        >>> Beat.from_bytes(Beat(step=3, seen={2: Seen(STOPPED)}).to_bytes()).seen[2].state
        'stopped'
        """
        if message[:1] not in (CALM, WAITS, URGENT):
            raise BadMessage("of another version")
        told = _loaded(message[1:])
        try:
            waiting, seen = told["waiting"], told["seen"].items()
            return cls(
                step=_number(int, told["step"]),
                median=_number(float, told["median"]),
                place=_text(told["place"]),
                still=_number(float, told["still"]),
                waiting=None if waiting is None else _waiting(waiting),
                seen={int(rank): _seen(state) for rank, state in seen},
                left=_text(told["left"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BadMessage(f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Finding:
    """What a keeper tells all ranks.

    Attributes:
        text: what has happened, in words.
        left: the rank that has left the job; None: it is no word of that.
        ends: the wait that leads nowhere; "": none.
        missing: the ranks that were waited for there.
    """

    text: str
    left: int | None = None
    ends: str = ""
    missing: tuple[int, ...] = ()

    def to_bytes(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, message: bytes) -> "Finding":
        """Return what a keeper has told.

        Raises:
            BadMessage: for what is none.

        >>> Finding.from_bytes(Finding("rank 2 has left", left=2).to_bytes())
        Finding(text='rank 2 has left', left=2, ends='', missing=())
        """
        told = _loaded(message)
        try:
            left = told["left"]
            return cls(
                _text(told["text"]),
                None if left is None else _number(int, left),
                _text(told["ends"]),
                tuple(_number(int, rank) for rank in told["missing"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BadMessage(f"{type(error).__name__}: {error}") from error


def _loaded(message: bytes) -> Any:
    if len(message) > MOST_BYTES:
        raise BadMessage(f"{len(message)} bytes")
    try:
        return json.loads(message)
    except (ValueError, RecursionError) as error:
        raise BadMessage("not JSON") from error


def _number(kind: type, value: Any) -> Any:
    if type(value) not in (int, kind) or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} is not a number in range")
    return kind(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        raise ValueError("a value is not a text, or too long")
    return "".join(letter if letter.isprintable() else " " for letter in value)


def _waiting(told: Any) -> Waiting:
    ranks = tuple(_number(int, rank) for rank in told["ranks"])
    seconds = _number(float, told["seconds"])
    return Waiting(_text(told["what"]), ranks, seconds, told["is_possible"] is True)


def _seen(told: Any) -> Seen:
    if told["state"] not in STATES:
        raise ValueError(f"{told['state']!r} is not a state of a process")
    return Seen(told["state"], _number(float, told["still"]), _text(told["hint"]))
