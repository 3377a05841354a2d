"""Show that the tests notice mistakes: make them one at a time, in a copy, and run the tests there.

    .venv/bin/python tools/mutants.py                 # all mutations
    .venv/bin/python tools/mutants.py vote exchange   # those of some rooms
    .venv/bin/python tools/mutants.py --only momentum # those whose file or meaning has the word
    .venv/bin/python tools/mutants.py --check         # the same tests without mutations: they pass

The mutations of a room are in `tools/mutations/ROOM.toml`, those of the modules beside the rooms in
`root.toml`. Each has

- `what`: the mistake in a few words,
- `file`: in `horovod_detox`, of which `old`, which is there exactly once, becomes `new`,
- `tests`: files, folders or tests for pytest, of which one must fail in a single process;
  or `job`: files in `tests/distributed`, for `ranks` real ranks (4 if not given),
- `select`: the expression for pytest's `-k`, if these are too many.

The working tree is left alone. A test that does not end in time counts as one that has failed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[1]
TABLES = Path(__file__).with_name("mutations")
PACKAGE = "horovod_detox"
HOROVODRUN = Path(sys.executable).with_name("horovodrun")
COMPILED = {"arrays/host_kernels.py", "arrays/host_digests.py"}
"""The files of which compiled code is kept on disk."""

SECONDS = {"tests": 300, "job": 240}
"""The time limits in one process and on real ranks."""
GRACE_SECONDS = 30

WHERE = "import horovod_detox as package; print(package.__file__)"
COMPILE = "from horovod_detox.arrays import compilation; compilation.prepare()"
FAILED = re.compile(
    r"^(?:\[\d+\]<std\w+>:)?\s*(?:FAILED|ERROR) (tests/.+?|horovod_detox/.+?)(?: - |$)"
)
IDLE = re.compile(r"^(?:\[\d+\]<std\w+>:)?(?:no tests ran|\d+ deselected) in ", re.MULTILINE)
"""What is printed when there was no test to run."""


class Stale(ValueError):
    """A mutation that does not fit the file it is of."""


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A mistake, and the tests that must notice it; see the head of this file.

    Attributes:
        room: the table that it is in.
    """

    room: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()
    job: tuple[str, ...] = ()
    ranks: int = 4
    select: str = ""

    @property
    def path(self) -> Path:
        """Return the file inside a checkout."""
        return Path(PACKAGE, self.file)

    @property
    def seconds(self) -> int:
        """Return the time limit of its tests."""
        return SECONDS["job" if self.job else "tests"]

    def command(self) -> list[str]:
        """Return what runs its tests."""
        options = ["-x", "-q", "-rfE", "--tb=no", "--assert=plain", "-p", "no:cacheprovider"]
        selection = [*self.tests, *self.job, *(["-k", self.select] if self.select else [])]
        pytest = [sys.executable, "-m", "pytest", *options, *selection]
        if not self.job:
            return pytest
        start = [str(HOROVODRUN), "--gloo", "-np", str(self.ranks)]
        return [*start, *pytest, "--timeout-method=thread"]

    def mutated(self, text: str) -> str:
        """Return the text of its file with the mistake in it.

        Raises:
            Stale: when the old text is not there exactly once.
        """
        if (count := text.count(self.old)) != 1:
            raise Stale(f"{self.old!r} is {count} times in {self.file}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Run:
    """How a run of tests ended.

    Attributes:
        code: the exit code; None: it took too long.
        first: the first test that failed; empty: none is named.
        output: all that was printed.
        seconds: how long it took.
    """

    code: int | None
    first: str
    output: str
    seconds: float


class Copy:
    """A copy of the working tree in which mistakes can be made.

    Args:
        folder: where to; empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        listed = subprocess.check_output(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=PROJECT
        )
        for name in filter(None, listed.decode().split("\0")):
            if (PROJECT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(PROJECT / name, folder / name)
        self._environment = os.environ | {
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "NUMBA_CACHE_DIR": str(folder / "compiled"),
            "CI": "1",  # the same examples every time
            "OMP_NUM_THREADS": "1",
            "TF_NUM_INTRAOP_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "TF_ENABLE_ONEDNN_OPTS": "0",
        }

    def check_import(self, on_ranks: bool) -> None:
        """Check that it is this copy that tests import, alone and on real ranks.

        Raises:
            RuntimeError: naming what they import.
        """
        start = [str(HOROVODRUN), "--gloo", "-np", "2"] if on_ranks else []
        run = self.run([*start, sys.executable, "-c", f"{WHERE}; {COMPILE}"], 300)
        ours = str(self._folder / PACKAGE / "__init__.py")
        if run.output.count(ours) != (2 if on_ranks else 1):
            raise RuntimeError(f"the tests do not import {ours}:\n{run.output}")

    def run(self, command: Sequence[str], limit: float) -> Run:
        """Run a command in this copy."""
        begun = time.monotonic()
        with tempfile.TemporaryFile("w+") as printed:
            process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
            printed.seek(0)
            output = printed.read()
        found = map(FAILED.search, output.splitlines())
        first = next((match[1] for match in found if match), "")
        return Run(code, first, output, time.monotonic() - begun)

    @contextmanager
    def with_mistake(self, mutation: Mutation) -> Iterator[None]:
        """Let a mistake be in this copy."""
        path = self._folder / mutation.path
        text, before = path.read_text(), path.stat()
        compiled = self._folder / "compiled with a mistake"
        path.write_text(mutation.mutated(text))
        former = self._environment["NUMBA_CACHE_DIR"]
        if mutation.file in COMPILED:
            self._environment["NUMBA_CACHE_DIR"] = str(compiled)
        try:
            yield
        finally:
            path.write_text(text)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # compiled code stays valid
            self._environment["NUMBA_CACHE_DIR"] = former
            shutil.rmtree(compiled, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs; horovodrun ends its ranks when it is asked to end."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def read_tables(rooms: Sequence[str], word: str) -> list[Mutation]:
    """Return the mutations of some rooms, of none for all, that have a word in file or meaning.

    Raises:
        ValueError: for a room that has no table, or naming all entries that do not fit their files.
    """
    known = sorted(path.stem for path in TABLES.glob("*.toml"))
    if unknown := sorted(set(rooms) - set(known)):
        raise ValueError(f"{unknown[0]} has no mutations: choose from {', '.join(known)}")
    mutations, stale = [], []
    for room in rooms or known:
        for entry in tomllib.loads((TABLES / f"{room}.toml").read_text())["mutation"]:
            lists = {key: tuple(entry.pop(key, ())) for key in ("tests", "job")}
            mutation = Mutation(room=room, **lists, **entry)
            if bool(mutation.tests) == bool(mutation.job):
                raise ValueError(f"{room}.toml: {mutation.what!r} needs either tests or a job")
            try:
                mutation.mutated((PROJECT / mutation.path).read_text())
            except (FileNotFoundError, Stale) as error:
                stale.append(f"{room}.toml: {mutation.what!r} is stale: {error}")
            if word in mutation.file or word in mutation.what:
                mutations.append(mutation)
    if stale:
        raise ValueError("\n".join(stale))
    return mutations


def try_out(copy: Copy, mutation: Mutation) -> bool:
    """Make a mistake, run its tests, say how they ended; return whether they noticed it."""
    with copy.with_mistake(mutation):
        run = copy.run(mutation.command(), mutation.seconds)
    if run.code == 0:
        word, why = "SURVIVED", ""
    elif run.first or run.code is None or (mutation.job and not IDLE.search(run.output)):
        word, why = "caught", run.first or ("timeout" if run.code is None else "the job ended")
    else:
        word, why = "NOT RUN", run.output.strip().rpartition("\n")[2]
    about = f"{mutation.file}: {mutation.what}"
    print(f"{word:8} {run.seconds:6.1f} s  {about}" + (f"  [{why}]" if why else ""), flush=True)
    return word == "caught"


def check(copy: Copy, mutations: Sequence[Mutation]) -> bool:
    """Run all selections of tests without mistakes; return whether they pass."""
    passed = True
    commands = {tuple(mutation.command()): mutation.seconds for mutation in mutations}
    for command, seconds in commands.items():
        run = copy.run(command, 2 * seconds)
        about = " ".join(command[command.index("no:cacheprovider") + 1 :])
        print(
            f"{'passed' if run.code == 0 else 'FAILED':8} {run.seconds:6.1f} s  {about}", flush=True
        )
        if run.code != 0:
            passed = False
            print(run.output[-3000:])
    return passed


def main() -> int:
    """Run the mutations that are asked for; return 1 if one survives, 2 if one is stale."""
    parser = argparse.ArgumentParser(description="Show that the tests notice mistakes.")
    parser.add_argument("rooms", nargs="*", metavar="room", help="whose mutations; default: all")
    parser.add_argument("--only", default="", metavar="WORD", help="in the file or the meaning")
    parser.add_argument("--in", dest="way", choices=["process", "ranks"], help="of which tests")
    parser.add_argument("--check", action="store_true", help="run the tests without mutations")
    parser.add_argument("--list", action="store_true", help="show the mutations and run nothing")
    asked = parser.parse_args()
    try:
        mutations = read_tables(asked.rooms, asked.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if asked.way:
        mutations = [each for each in mutations if bool(each.job) == (asked.way == "ranks")]
    if asked.list:
        print(*(f"{each.room:12} {each.file}: {each.what}" for each in mutations), sep="\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Copy(Path(folder).resolve())
        copy.check_import(on_ranks=False)
        if any(each.job for each in mutations):
            copy.check_import(on_ranks=True)
        if asked.check:
            return 0 if check(copy, mutations) else 1
        return summarize([(each.room, try_out(copy, each)) for each in mutations])


def summarize(results: Sequence[tuple[str, bool]]) -> int:
    """Print how many mutations were caught, by room; return the exit code."""
    made, caught = Counter(room for room, _ in results), Counter(room for room, ok in results if ok)
    for room in made:
        print(f"{room:12} {caught[room]:3} of {made[room]:3} caught")
    print(f"{'all':12} {caught.total():3} of {made.total():3} caught")
    return 0 if caught == made else 1


if __name__ == "__main__":
    sys.exit(main())
