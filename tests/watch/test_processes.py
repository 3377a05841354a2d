"""What a host's kernel tells of other processes, and where a thread is in its script."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from horovod_detox.watch import places
from horovod_detox.watch.beats import GONE, RUNNING, SLEEPING, STOPPED
from horovod_detox.watch.places import Sampler, place, place_of_error
from horovod_detox.watch.processes import Identity, Neighbour
from horovod_detox.watch.sockets import Sockets


@pytest.fixture
def start():
    """Return what starts a process that runs some code, and says when it has begun."""
    children = []

    def begin(code):
        code = f"import time; print('begun', flush=True); {code}"
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        return child

    yield begin
    for child in children:
        child.kill()
        child.wait()
        child.stdout.close()


def until(look, state, seconds=10.0):
    """Look until there is a state, or time is up."""
    end = time.monotonic() + seconds
    while (seen := look()).state != state and time.monotonic() < end:
        time.sleep(0.02)
    return seen


def test_a_neighbour_sleeps_is_stopped_goes_on_and_is_killed(start):
    child = start("time.sleep(100)")
    neighbour = Neighbour(child.pid)
    assert until(neighbour.look, SLEEPING).state == SLEEPING
    assert not neighbour.is_gone()
    child.send_signal(signal.SIGSTOP)
    assert until(neighbour.look, STOPPED).state == STOPPED
    time.sleep(0.3)
    assert neighbour.look().still >= 0.3
    child.send_signal(signal.SIGCONT)
    assert until(neighbour.look, SLEEPING).state == SLEEPING
    child.send_signal(signal.SIGSTOP)
    neighbour.kill()
    assert until(neighbour.look, GONE).state == GONE
    assert neighbour.is_gone()
    assert child.wait() == -signal.SIGKILL
    neighbour.kill()
    neighbour.close()


def test_a_busy_neighbour_moves(start):
    neighbour = Neighbour(start("exec('while True: pass')").pid)
    assert until(neighbour.look, RUNNING).state == RUNNING
    time.sleep(0.5)
    assert neighbour.look().still < 0.5
    neighbour.close()


def test_a_neighbour_is_gone_though_its_children_live_on(start):
    child = start("import os; os.fork() or time.sleep(5); os._exit(0)")
    neighbour = Neighbour(child.pid)
    assert until(neighbour.look, GONE).state == GONE
    neighbour.close()


def test_processes_are_told_apart_across_containers():
    me = Identity.mine()
    assert me.pid == os.getpid()
    assert "pid:[" in me.kernel
    with pytest.raises(ProcessLookupError):
        Neighbour(2**22 - 1)


def sleep_at_a_line(event):
    event.wait(30)  # here


def work_until(event):
    while not event.is_set():
        pass


def sampled(function):
    """Return the places and the standstill of a thread that runs a function for a second."""
    event = threading.Event()
    thread = threading.Thread(target=function, args=[event])
    thread.start()
    sampler = Sampler(thread)
    found = []
    for _ in range(10):
        time.sleep(0.1)
        found.append(sampler.sample())
    event.set()
    thread.join()
    return found, sampler.still


def test_a_thread_that_waits_stands_still_and_its_line_is_told():
    found, still = sampled(sleep_at_a_line)
    assert still > 0.7
    assert found[-1].startswith("in Event.wait (test_processes.py:")
    assert found[-1].endswith(": event.wait(30)  # here)")


def test_a_thread_that_works_does_not_stand_still():
    found, still = sampled(work_until)
    assert still < 0.5
    assert "test_processes.py" in found[-1]


SAMPLES_BESIDE_GARBAGE = """
import faulthandler, gc, threading
from horovod_detox.watch.places import Sampler

faulthandler.dump_traceback_later(20, exit=True)
sampler = Sampler()
for allocations in range(1, 40):
    gc.disable()
    gc.collect()
    for _ in range(3):
        cycle = [threading.local()]
        cycle.append(cycle)
        del cycle
    gc.set_threshold(gc.get_count()[0] + allocations)
    gc.enable()
    sampler.sample()
    assert gc.isenabled()
gc.disable()
sampler.sample()
assert not gc.isenabled()
"""


def test_garbage_of_any_kind_is_collected_beside_samples():
    """What is collected may wait for the lock that CPython 3.11 holds while it lists frames."""
    command = [sys.executable, "-c", SAMPLES_BESIDE_GARBAGE]
    job = subprocess.run(command, capture_output=True, text=True, check=False)
    assert job.returncode == 0, job.stderr


def test_garbage_is_collected_again_when_frames_are_refused(monkeypatch):
    def refuse():
        raise PermissionError("an audit hook")

    sampler = Sampler()
    monkeypatch.setattr(sys, "_current_frames", refuse)
    with pytest.raises(PermissionError):
        sampler.sample()
    assert gc.isenabled()


def test_long_lines_are_cut_and_lines_of_libraries_alone_are_told(monkeypatch):
    monkeypatch.setattr(places.linecache, "getline", lambda *_: "x" * 300)
    assert place(sys._getframe()).endswith(f" ({'x' * places.MOST_LETTERS}...)")
    assert place(None) == ""
    monkeypatch.setattr(places, "is_library", lambda file: True)
    assert place(sys._getframe()).startswith("at test_processes.py:")


def test_a_frame_may_be_at_no_line():
    class Frame:
        f_code, f_lineno = sampled.__code__, None
        f_globals, f_back = {}, None

    assert place(Frame()) == "at test_processes.py:0"  # pyright: ignore[reportArgumentType]


def test_the_place_of_an_error_is_in_the_script():
    with pytest.raises(subprocess.CalledProcessError) as raised:
        subprocess.run(["false"], check=True)
    assert place_of_error(raised.tb).startswith("test_processes.py:")
    assert place_of_error(None) == ""


def test_only_connections_made_in_the_block_are_cut_and_none_is_left_to_a_fork():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        before = socket.create_connection(server.getsockname())
        before_far, _ = server.accept()
        sockets = Sockets()
        with sockets.recorded(lambda: False):
            of_mpi = socket.create_connection(server.getsockname())
            of_mpi_far, _ = server.accept()
        with sockets.recorded(lambda: True):
            during = socket.create_connection(server.getsockname())
            during_far, _ = server.accept()
        sockets_left = os.fork()
        if not sockets_left:
            is_closed = not os.path.exists(f"/proc/self/fd/{during.fileno()}")
            is_open = os.path.exists(f"/proc/self/fd/{before.fileno()}")
            os._exit(not (is_closed and is_open))
        assert os.waitpid(sockets_left, 0)[1] == 0
        blocked = threading.Thread(target=during.recv, args=[1])
        blocked.start()
        sockets.cut()
        blocked.join(5)
        assert not blocked.is_alive()
        for near, far in ((before, before_far), (of_mpi, of_mpi_far)):
            far.sendall(b"x")
            assert near.recv(1) == b"x"
        for each in (before, before_far, of_mpi, of_mpi_far, during, during_far):
            each.close()
    assert not sockets.cut()  # of descriptors that are closed, nothing


def test_several_threads_may_ask_whether_a_neighbour_is_gone(start):
    neighbour = Neighbour(start("time.sleep(100)").pid)
    failed = []

    def ask():
        try:
            for _ in range(20_000):
                neighbour.is_gone()
        except RuntimeError as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    neighbour.close()
    assert failed == []
