"""Files that hold the wrong state of one rank lose their names, and all ranks are told."""

import atexit
import io
import logging
import os
import sys
from typing import Any

import numpy as np
import pytest

from horovod_detox.replicas.files import MOST_FILES, WRONG, Files
from tests.replicas.test_upkeep import exchanges, names_of


def write(path, text="x"):
    path.write_text(text)
    return path


def test_a_file_is_followed_when_it_is_renamed(tmp_path):
    files = Files()
    unconfirmed = files.unconfirmed()
    files.note(write(tmp_path / "new"))
    os.replace(tmp_path / "new", tmp_path / "checkpoint")
    (file,) = unconfirmed.take()
    assert file.set_aside() == str(tmp_path / "checkpoint") + WRONG
    assert os.listdir(tmp_path) == ["checkpoint" + WRONG]
    assert file.set_aside() == str(tmp_path / "checkpoint") + WRONG  # once for all engines


def test_an_open_file_and_what_is_none(tmp_path):
    files = Files()
    unconfirmed = files.unconfirmed()
    with open(tmp_path / "open", "wb") as file:
        files.note(file)
    files.note(io.BytesIO())
    files.note("elsewhere://bucket/key")
    names = [file.set_aside() for file in unconfirmed.take()]
    assert names == [str(tmp_path / "open") + WRONG, "a BytesIO", "elsewhere://bucket/key"]


def test_what_is_removed_or_written_anew_is_not_touched(tmp_path):
    files = Files()
    unconfirmed = files.unconfirmed()
    for name in ("removed", "replaced"):
        files.note(write(tmp_path / name))
    os.remove(tmp_path / "removed")
    os.replace(write(tmp_path / "other", "good"), tmp_path / "replaced")
    assert [file.set_aside() for file in unconfirmed.take()] == ["", ""]
    assert (tmp_path / "replaced").read_text() == "good"


def test_few_files_are_kept_open(tmp_path):
    """One that is removed while it is followed still takes its space."""
    files = Files()
    files.note(write(tmp_path / "nobody asks"))
    unconfirmed = files.unconfirmed()
    before = len(os.listdir("/proc/self/fd"))
    for i in range(5 * MOST_FILES):
        files.note(write(tmp_path / str(i)))
    assert len(os.listdir("/proc/self/fd")) == before + MOST_FILES
    unconfirmed.take()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("key", ["buffers/x", "random/x"])
@pytest.mark.parametrize("bad", [0, 5])
def test_what_a_rank_has_saved_is_compared_in_the_next_exchange(tmp_path, bad, key):
    """Nothing else would have found it: it is in no gradient, and scrubbing is off."""

    def fault(step: int, holder: Any):
        if step == 6 and holder.rank == bad:
            holder.held[key] = np.full(5, 3)
        if step == 8 and holder.rank in (0, 5):
            holder.files.note(write(tmp_path / f"of rank {holder.rank}"))

    results = exchanges(12, every=0, fault=fault)
    (event,) = results[2][1].events
    cause: Any = event.cause
    assert (event.step, event.kind, event.ranks) == (8, "drift", (bad,))
    other = f"of rank {5 - bad}"
    if key == "random/x":  # which is in no file
        assert sorted(os.listdir(tmp_path)) == ["of rank 0", "of rank 5"]
        assert cause.files == ()
    else:
        assert sorted(os.listdir(tmp_path)) == sorted([other, f"of rank {bad}" + WRONG])
        wrong = f"{tmp_path}/of rank {bad}{WRONG}"
        assert cause.files == (wrong,)
        assert str(event).endswith(f"; healed; save again what holds that state: {wrong}")


def test_right_files_cost_one_comparison_and_keep_their_names(tmp_path):
    def fault(step: int, holder: Any):
        if step == 8 and holder.rank == 0:
            holder.files.note(write(tmp_path / "right"))

    results = exchanges(12, every=0, fault=fault)
    assert names_of(results) == ["replicas"] * 2  # the first is the usual one
    assert results[0][1].events == ()
    assert os.listdir(tmp_path) == ["right"]


def test_a_file_of_before_the_last_comparison_is_right(tmp_path):
    """What is damaged afterwards does not concern it."""

    def fault(step: int, holder: Any):
        if step == 5 and holder.rank == 0:
            holder.files.note(write(tmp_path / "right"))
        if step == 7 and holder.rank == 0:
            holder.held["parameters/x"] = np.full(5, 3)

    results = exchanges(12, every=0, fault=fault)
    (event,) = results[0][1].events
    cause: Any = event.cause
    assert (event.kind, event.step, cause.files) == ("dissent", 7, ())
    assert os.listdir(tmp_path) == ["right"]


@pytest.fixture
def ends(monkeypatch):
    """Return what is to be done at the end of the process, and is not."""
    found = []
    monkeypatch.setattr(atexit, "register", found.append)
    return found


def told(files, caplog):
    """Return what is said at the end of the process."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="horovod_detox"):
        files._tell_of_late()
    return caplog.messages


def test_what_nobody_compares_is_told_at_the_end(tmp_path, caplog, monkeypatch, ends):
    files = Files()
    reader = files.unconfirmed()
    files.begin()
    files.note(write(tmp_path / "new"), is_held=True)
    os.replace(tmp_path / "new", tmp_path / "checkpoint")
    assert told(files, caplog) == [
        f"saved after the last exchange, and compared with no other rank: {tmp_path}/checkpoint "
        "(call hvd.scrub() on all ranks before or after saving)"
    ]
    assert ends == [files._tell_of_late]
    assert reader
    monkeypatch.setattr(sys, "last_value", ValueError(), raising=False)
    assert told(files, caplog) == []


def saved(files, path, target=None):
    files.note(write(path) if target is None else target, is_held=True)


QUIET = {
    "an exchange follows": lambda files, path: (saved(files, path), files.begin()),
    "hvd.scrub() follows": lambda files, path: (saved(files, path), files.confirm()),
    "hvd.scrub() was before": lambda files, path: (files.confirm(), saved(files, path)),
    "something else": lambda files, path: files.note(write(path)),
    "no file": lambda files, path: saved(files, path, io.BytesIO()),
    "removed": lambda files, path: (saved(files, path), os.remove(path)),
}


@pytest.mark.usefixtures("ends")
@pytest.mark.parametrize("what", QUIET)
def test_what_was_compared_or_cannot_be_is_not_told(tmp_path, caplog, what):
    files = Files()
    reader = files.unconfirmed()
    files.begin()
    QUIET[what](files, tmp_path / "file")
    assert told(files, caplog) == []
    files.begin()
    saved(files, tmp_path / "file")
    assert len(told(files, caplog)) == 1
    assert reader


def test_where_nobody_compares_nothing_is_told(tmp_path, caplog):
    files = Files()
    saved(files, tmp_path / "file")
    assert told(files, caplog) == []


@pytest.mark.usefixtures("ends")
def test_exchanges_are_seen(tmp_path, caplog):
    def fault(step: int, holder: Any):
        if step in (8, 11) and holder.rank == 0:
            holder.files.note(write(tmp_path / str(step)), is_held=True)

    results = exchanges(12, every=0, fault=fault)
    assert told(results[0][0].files, caplog) == []  # both were before the last exchange
