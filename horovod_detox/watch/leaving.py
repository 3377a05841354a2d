"""How this process leaves the job: the others hear why, and it says whose fault it is not."""

import atexit
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn

from horovod_detox.exchange.waits import ExchangeTimeout, RankLeft
from horovod_detox.remedies import TRY_AGAIN
from horovod_detox.watch.places import is_library, place_of_error
from horovod_detox.watch.watch import LEAVE_WITHIN, Watch

THEIR_END = 3.0
"""Seconds that a rank lets one that has left end first, so that a launcher tells the right one."""
UNTIL_ALL_HEARD = 1.0
"""Seconds in which the others hear of the end of a wait before they lose the connections to this
rank: Horovod may end them with SIGABRT for that."""
OF_HOROVOD = {"HorovodInternalError", "OpError"}
"""The errors that Horovod's collectives end in, of its own and of TensorFlow."""
OF_A_LOSS = re.compile(
    r"shut ?down|[Cc]onnection|[Rr]ead error|[Tt]ime(d |)out|[Bb]roken pipe|recv|unreachable"
)
"""What the errors of Horovod say when another rank has left."""


class Leaving:
    """Tells the others why this process ends: by an error, `sys.exit`, SIGTERM, or at its end.

    There is one in a process; it may be given another watch.

    Args:
        cut: ends what Horovod would wait for at the end of the process, if it can.
    """

    def __init__(self, cut: Callable[[], bool]) -> None:
        self.watch: Watch | None = None
        self._cut = cut
        self._is_victim = False
        self._is_woken = False
        self._asked = ""
        self._write, self._exit = sys.excepthook, sys.exit
        sys.excepthook = self._on_error
        sys.exit = self._on_exit
        self._hear_sigterm()
        os.register_at_fork(after_in_child=self._forget)

    def follow(self, watch: Watch | None) -> None:
        """Tell what is to be told through another watch; None: to nobody."""
        self.watch = watch
        atexit.unregister(self._at_end)  # what was registered last is the first to be called
        if watch is not None:
            atexit.register(self._at_end)
        is_main = threading.current_thread() is threading.main_thread()
        if watch is not None and is_main and self._is_sigterm_ours():
            signal.set_wakeup_fd(watch.wake.fileno(), warn_on_full_buffer=False)
            watch.dies_of = self._dies_of
            self._is_woken = True
        elif self._is_woken and is_main:
            signal.set_wakeup_fd(-1)
            self._is_woken = False

    def cause(self, error: BaseException) -> ExchangeTimeout | None:
        """Return what an error of Horovod comes from, if another rank is behind it."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if self.watch is None or not kinds & OF_HOROVOD or not OF_A_LOSS.search(str(error)):
            return None
        return self.watch.cause(THEIR_END)

    def _on_error(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """Write what has ended the script; of a wait that others have ended, a line is enough."""
        if self.watch is None or not _has_ended():
            return self._write(kind, error, trace)
        if isinstance(error, ExchangeTimeout) and error.is_explained:
            self._end_as_victim(error)
        if cause := self.cause(error):
            self._write(kind, error, trace)
            self._end_as_victim(cause)
        self._write(kind, error, trace)
        place = place_of_error(trace)
        self.watch.leave(f"{kind.__name__}: {error}{f' ({place})' if place else ''}")

    def _end_as_victim(self, cause: ExchangeTimeout) -> NoReturn:
        """Say what has ended this rank, which is not its own fault; end with an exit code."""
        assert self.watch is not None
        self._is_victim = True
        self.watch.say(cause)
        self.watch.leave("it stopped waiting for another rank")
        if isinstance(cause, RankLeft):
            self.watch.wait_for_their_end(THEIR_END)
        else:
            time.sleep(UNTIL_ALL_HEARD)
        raise SystemExit(TRY_AGAIN)

    def _on_exit(self, code: Any = None) -> NoReturn:
        """Remember where `sys.exit` was called."""
        caller = sys._getframe(1)
        while is_library(caller.f_code.co_filename) and caller.f_back is not None:
            caller = caller.f_back
        file = os.path.basename(caller.f_code.co_filename)
        asked = "" if code is None else repr(code)
        self._asked = f"sys.exit({asked}) ({file}:{caller.f_lineno})"
        self._exit(code)

    def _at_end(self) -> None:
        if self.watch is None:
            return
        self.watch.leave(self._asked or "its script has ended")
        can_end = not (self._is_victim or self.watch.has_ended_waits()) or self._cut()
        watch = self.watch
        self.follow(None)
        watch.close()
        if self._is_victim and not can_end:  # as under MPI: Horovod's shutdown would wait for ever
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(TRY_AGAIN)

    def _hear_sigterm(self) -> None:
        """Say so when SIGTERM ends this process, if the script does not handle it."""
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _is_sigterm_ours(self) -> bool:
        return signal.getsignal(signal.SIGTERM) == self._on_sigterm

    def _on_sigterm(self, number: int, frame: FrameType | None) -> NoReturn:
        """End this process, if the watch's thread has not done so."""
        if self.watch is not None:
            time.sleep(LEAVE_WITHIN)
        os._exit(128 + number)

    def _dies_of(self, number: int) -> str:
        return "SIGTERM" if number == signal.SIGTERM and self._is_sigterm_ours() else ""

    def _forget(self) -> None:
        """Let forked processes, as those of loaders of data, end as they ever did."""
        self.watch = None
        if self._is_woken:
            signal.set_wakeup_fd(-1)
        if self._is_sigterm_ours():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _has_ended() -> bool:
    """Return whether the script has ended: a hook for errors may be called while it runs.

    So does C++ with an error that it cannot raise, as torch with warnings that are errors.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    return frame is None
