"""The ends of waits, as Horovod's elastic jobs know them: they go on after such errors."""

from horovod.common.exceptions import HorovodInternalError

from horovod_detox.exchange import waits
from horovod_detox.exchange.collectives import RanksJoined
from horovod_detox.frontend.watching import watching


class ExchangeTimeout(waits.ExchangeTimeout, HorovodInternalError):
    """A wait was not over in time, in a job of Horovod."""


class RankLeft(waits.RankLeft, ExchangeTimeout):
    """A wait leads nowhere, as a rank has left a job of Horovod."""


def check_waits() -> None:
    """Raise when a wait of this process has ended."""
    if (why := waits.waits.ended()) is not None:
        raise of_horovod(why)


def of_horovod(error: waits.ExchangeTimeout) -> ExchangeTimeout:
    """Return the same error, as one of Horovod."""
    same = (RankLeft if isinstance(error, waits.RankLeft) else ExchangeTimeout)(*error.args)
    same.is_explained = error.is_explained
    return same


def explained(error: Exception) -> Exception:
    """Return who is behind an error of Horovod's collectives, if that is known; else the error."""
    why = waits.waits.ended() or watching.cause(error)
    return error if why is None else of_horovod(why)


def explained_in_exchange(error: Exception) -> Exception:
    """Do the same in our own collectives, which also know what to do while ranks have joined."""
    joined = "not supported with Join" in str(error)
    return RanksJoined(str(error)) if joined else explained(error)
