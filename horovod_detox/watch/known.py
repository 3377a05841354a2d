"""What a keeper knows of a rank."""

from dataclasses import dataclass

from horovod_detox.watch.beats import STOPPED, Beat, Seen

SILENT = 3.0
"""Seconds without a word from a rank after which it does not answer."""


@dataclass
class Known:
    """What is known of a rank.

    Attributes:
        beat: what it told last.
        at: when.
        seen: what another rank of its host saw of it last.
        seen_at: when.
        left: why and when it has left the job; "": it has not.
        is_gone: whether it has left without a word.
        is_heard: whether it ever told anything.
        cut_at: when its connection ended; None: it has not.
        is_said: whether it was said to be missing.
    """

    beat: Beat
    at: float
    seen: Seen | None = None
    seen_at: float = 0.0
    left: str = ""
    is_gone: bool = False
    is_heard: bool = False
    cut_at: float | None = None
    is_said: bool = False

    def is_known(self) -> bool:
        """Return whether anything is known of it."""
        return self.is_heard or bool(self.left)

    def is_silent(self, now: float) -> bool:
        return now - self.at > SILENT

    def seen_now(self, now: float) -> Seen | None:
        return self.seen if now - self.seen_at <= SILENT else None

    def still(self, now: float) -> float:
        """Return for how many seconds it is known to have stood still."""
        seen = self.seen_now(now)
        if seen is not None and (self.is_silent(now) or seen.state == STOPPED):
            since = seen.still + now - self.seen_at
            return max(since, now - self.at) if seen.state == STOPPED else since
        age = now - self.at
        return age if self.is_silent(now) else self.beat.still + age
