"""What a process tells the others when it ends, and what it does not take for its end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from horovod_detox.watch import leaving

ROOT = Path(__file__).parents[2]
BEGIN = """
import os, signal, sys, threading, time
from horovod_detox.exchange.waits import ExchangeTimeout, RankLeft
from horovod_detox.watch.leaving import Leaving

class Watch:
    rank, wake, ended = 3, None, False

    def leave(self, why):
        print("left:", why, flush=True)

    def cause(self, seconds):
        return None

    def say(self, cause):
        print("said:", cause, flush=True)

    def wait_for_their_end(self, seconds):
        print("waits", flush=True)

    def has_ended_waits(self):
        return self.ended

    def close(self):
        print("closed", flush=True)

class Wake:
    def fileno(self):
        return -1

def cut():
    print("cut", flush=True)
    return CUTS

CUTS = True
watch = Watch()
watch.wake = Wake()
Leaving(cut).follow(watch)
def explained(kind):
    error = kind("rank 2 has left")
    error.is_explained = True
    return error
"""
WAITED_IN_VAIN = ["said: rank 2 has left", "left: it stopped waiting for another rank"]
ENDS = {
    "well": ("", ["left: its script has ended"], 0),
    "by an error": ("raise ValueError('bad')", ["left: ValueError: bad (<string>:{line})"], 1),
    "by sys.exit": ("sys.exit(3)", ["left: sys.exit(3) (<string>:{line})"], 3),
    "as one that waited": ("raise explained(ExchangeTimeout)", [*WAITED_IN_VAIN, "cut"], 75),
    "as one whose partner left": (
        "raise explained(RankLeft)",
        [*WAITED_IN_VAIN, "waits", "cut"],
        75,
    ),
}


def run(code):
    """Run code in a process; return it, and its lines."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    return done, done.stdout.splitlines()


@pytest.mark.parametrize(("code", "lines", "exit_code"), ENDS.values(), ids=ENDS)
def test_how_a_process_ends_is_told(code, lines, exit_code):
    done, told = run(code)
    line = BEGIN.count("\n") + 1
    expected = [text.format(line=line) for text in lines]
    # An error is told in the hook, and again at the end of the process, when it is known already.
    assert [text for text in told if text in expected] == expected, told
    assert told[-1] == "closed"
    assert done.returncode == exit_code
    assert ("Traceback" in done.stderr) == (exit_code == 1)


def test_a_hook_that_is_called_while_the_script_runs_is_not_its_end():
    """C++ calls it with errors that it cannot raise, as torch did with a warning."""
    done, told = run(
        """
def fail():
    try:
        raise ValueError("a warning")
    except ValueError:
        sys.excepthook(*sys.exc_info())
fail()
thread = threading.Thread(target=fail)
thread.start()
thread.join()
print("goes on", flush=True)
"""
    )
    assert told == ["goes on", "left: its script has ended", "closed"]
    assert done.stderr.count("ValueError: a warning") == 2


def test_one_that_waited_ends_when_the_others_have_heard_of_it():
    """Horovod may abort them when they lose the connection to this rank."""
    done, told = run(
        "said = []\n"
        "watch.say = lambda cause: said.append(time.monotonic())\n"
        "watch.close = lambda: print(f'{time.monotonic() - said[0]:.3f}')\n"
        "raise explained(ExchangeTimeout)"
    )
    assert done.returncode == 75
    assert 1.0 <= float(told[-1]) < 3.0


def test_where_nothing_can_be_cut_one_that_waited_ends_without_horovods_shutdown():
    """As under MPI, where it would wait for the rank that is missing."""
    done, told = run(
        "CUTS = False\nimport atexit\natexit.register(time.sleep, 1)\n"
        "raise explained(ExchangeTimeout)"
    )
    assert told[-2:] == ["cut", "closed"]
    assert done.returncode == 75


def test_forked_processes_say_nothing_and_die_by_signals():
    done, told = run(
        """
child = os.fork()
if not child:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    time.sleep(60)
    sys.exit()
time.sleep(0.3)
os.kill(child, signal.SIGTERM)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
"""
    )
    assert done.returncode == 0, done.stderr
    assert told == ["left: its script has ended", "closed"]


def test_sigterm_ends_the_process_though_the_watch_does_not():
    done, told = run("os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(30)")
    assert done.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in done.stderr
    assert told == []


def test_a_handler_of_the_script_stays():
    done, told = run(
        "signal.signal(signal.SIGTERM, lambda *_: print('saved', flush=True))\n"
        "os.kill(os.getpid(), signal.SIGTERM)"
    )
    assert told == ["saved", "left: its script has ended", "closed"]
    assert done.returncode == 0


@pytest.mark.parametrize(
    "said",
    [
        "Horovod has been shut down. This was caused by an exception on one of the ranks",
        "[unbound_buffer.cc:81] Timed out waiting 5000ms for recv operation to complete",
        "Application timeout caused pair closure",
        "[pair.cc:598] Connection closed by peer [10.0.0.1]:39041",
        "Read error [10.0.0.1]:39041: Connection reset by peer",
    ],
)
def test_errors_of_horovod_that_others_may_be_behind(said):
    assert leaving.OF_A_LOSS.search(said)
    assert not leaving.OF_A_LOSS.search("Mismatched allreduce tensor shapes: 1st has 3, 2nd 4")
