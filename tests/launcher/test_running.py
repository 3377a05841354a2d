"""A script is run as python itself does, and its end is told."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_horovod = pytest.mark.skipif(find_spec("horovod") is None, reason="needs Horovod")


CURIOUS = """
import os, sys
import neighbour
main = sys.modules["__main__"]
print(__name__, os.path.isabs(__file__), os.path.basename(__file__), sys.argv)
print(os.path.samefile(sys.path[0], os.path.dirname(__file__)), main.__file__ == __file__)
print("HOROVOD_DETOX_GROUP_SIZE" in os.environ, neighbour.__name__)

def fail():
    raise {}

if sys.argv[1:2] == ["fail"]:
    fail()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "neighbour.py").write_text("")
    (tmp_path / "curious.py").write_text(CURIOUS.replace("{}", "KeyError('lost')"))
    (tmp_path / "leaves.py").write_text(CURIOUS.replace("{}", "SystemExit('I leave')"))
    (tmp_path / "wrong.py").write_text("x = (\n")
    (tmp_path / "helps.py").write_text("import horovod.torch, sys\nsys.exit(0)\n")
    package = tmp_path / "lacking" / "horovod" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package.parent / "__init__.py").write_text("")
    return tmp_path


def python(folder, *command, rank="0", path=()):
    environment = os.environ | {"HOROVOD_RANK": rank}
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, path), str(ROOT)])
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


NOTHING_PROTECTED = "ended without a DistributedOptimizer or a DistributedGradientTape"


@needs_horovod
@pytest.mark.parametrize(
    ("where", "how"),
    [("", ["curious.py"]), ("lacking", ["../curious.py"]), ("", ["-m", "curious"])],
)
def test_a_script_finds_what_it_would_find_by_itself(folder, where, how):
    alone = python(folder / where, *how, "--group-size", "9", "-m")
    ours = python(folder / where, "-m", "horovod_detox", *how, "--group-size", "9", "-m")
    assert alone.returncode == 0, alone.stderr
    assert ours.stdout == alone.stdout
    assert ours.returncode == 2  # it trains nothing
    assert NOTHING_PROTECTED in ours.stderr
    assert ours.stderr.count("\n") == 1
    flags = ("-m", "horovod_detox", "--group-size", "3", *how)
    assert "\nTrue neighbour" in python(folder / where, *flags).stdout


@needs_horovod
@pytest.mark.parametrize(("script", "code"), [("curious.py", 1), ("leaves.py", 1), ("wrong.py", 1)])
def test_a_script_fails_as_it_would_by_itself(folder, script, code):
    alone = python(folder, script, "fail")
    ours = python(folder, "-m", "horovod_detox", script, "fail")
    assert (ours.returncode, alone.returncode) == (code, code)
    assert ours.stderr == alone.stderr
    assert ours.stdout == alone.stdout


@needs_horovod
def test_only_rank_0_ends_a_script_that_protected_nothing(folder):
    other = python(folder, "-m", "horovod_detox", "curious.py", rank="1")
    assert (other.returncode, other.stderr) == (0, "")


def test_a_script_that_only_shows_its_help_may(folder):
    pytest.importorskip("horovod.torch")
    done = python(folder, "-m", "horovod_detox", "helps.py")
    assert (done.returncode, done.stderr) == (0, "")


def test_horovod_lacks_the_framework(folder):
    done = python(folder, "-m", "horovod_detox", "helps.py", path=[folder / "lacking"])
    assert done.returncode == 2
    assert "horovod_detox: this Horovod was built without torch, which the script" in done.stderr
    assert done.stderr.count("\n") == 1


def test_one_process_trains_plainly(folder):
    pytest.importorskip("horovod.torch")
    script = ROOT / "tests" / "scripts" / "torch_synthetic.py"
    done = python(folder, "-m", "horovod_detox", str(script), "--num-iters", "1")
    assert done.returncode == 0, done.stderr
    assert "per rank: " in done.stdout
    assert (
        done.stderr
        == "only one rank: it trains without DETOX, as there is no other rank to vote with\n"
    )
