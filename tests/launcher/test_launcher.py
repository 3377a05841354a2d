"""Unmodified scripts: what the launcher reads, imports, says and refuses, in one process."""

import os
import random
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.frontend.session import Session
from horovod_detox.launcher import speech
from horovod_detox.launcher.arguments import flag_of, parse
from horovod_detox.launcher.imports import Finder
from horovod_detox.launcher.launch import main
from horovod_detox.launcher.random_states import NUMPY, PYTHON, RandomState, align
from horovod_detox.launcher.stand_in import Script
from horovod_detox.registry import meanings
from horovod_detox.vote.groups import Groups, group_seeds

ROOT = Path(__file__).parents[2]
needs_horovod = pytest.mark.skipif(find_spec("horovod") is None, reason="needs Horovod")
RANK_VARIABLES = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
OTHER_THAN_DEFAULT = {
    "group_size": "5",
    "inner": "multi_krum(f=1)",
    "outer": "bulyan",
    "buckets": "2",
    "num_byzantine": "none",
    "momentum": "0.5",
    "placement": "packed",
    "exchange": "sharded",
    "one_round_bytes": "0",
    "overlap_bytes": "7",
    "witnesses": "2",
    "seed": "9",
    "timeout": "2.5",
}


# Flags.


def test_every_field_is_a_flag():
    given = OTHER_THAN_DEFAULT | {
        field.name: str(field.default)
        for field in fields(Detox)
        if field.name not in OTHER_THAN_DEFAULT and field.default is not None
    }
    flags = [text for name, value in given.items() for text in (flag_of(name), value)]
    asked = parse([*flags, "train.py"])
    assert asked.variables == {f"HOROVOD_DETOX_{n.upper()}": value for n, value in given.items()}
    assert Detox.from_environment(asked.variables).overlap_bytes == 7


def test_every_flag_is_explained(capsys):
    with pytest.raises(SystemExit) as end:
        parse(["--help"])
    assert end.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for name, text in meanings(Detox).items():
        assert f"{flag_of(name)} {name.upper()}" in printed
        assert text.split(".")[0] in printed
        assert text


def test_what_follows_the_script_is_its_own():
    asked = parse(["--group-size", "3", "train.py", "--group-size", "x", "--", "-m", "--attack"])
    assert asked.script == "train.py"
    assert asked.rest == ["--group-size", "x", "--", "-m", "--attack"]
    assert asked.variables == {"HOROVOD_DETOX_GROUP_SIZE": "3"}
    assert (asked.is_module, asked.group_seed) == (False, 0)
    asked = parse(["--attack", "zero@1", "--group-seed", "4", "-m", "package.train", "--lr", "1"])
    assert (asked.script, asked.rest) == ("package.train", ["--lr", "1"])
    assert (asked.is_module, asked.group_seed) == (True, 4)
    assert asked.variables == {"HOROVOD_DETOX_ATTACK": "zero@1"}


# Refusals.


@pytest.fixture
def environment():
    """Take back what flags set."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: script"),
        ("--gruop-size 3 train.py", "unrecognized arguments: --gruop-size"),
        ("--group-size three train.py", "argument --group-size: invalid integer value: 'three'"),
        ("--group 3 train.py", "unrecognized arguments: --group"),
        ("--group-size 0 train.py", "group_size = 0: it must be an integer of at least 1"),
        ("--outer medain train.py", "outer: "),
        ("--attack revers@1 train.py", "reverse"),
        ("train.py", "there is no script train.py in "),
        (".", "there is no script . in "),
        ("-m no.such.module", "there is no module no.such.module"),
        ("-m json.no_such_module", "there is no module json.no_such_module"),
    ],
)
@pytest.mark.usefixtures("environment")
def test_bad_input_ends_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments.split())
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("horovod_detox: ")
    assert message in printed
    assert printed.count("\n") == 1


def test_a_variable_that_does_not_exist(capsys, monkeypatch):
    monkeypatch.setenv("HOROVOD_DETOX_GRUOP_SIZE", "3")
    with pytest.raises(SystemExit):
        main(["train.py"])
    assert "HOROVOD_DETOX_GRUOP_SIZE is not a variable" in capsys.readouterr().err


def test_horovod_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod", None)
    with pytest.raises(SystemExit) as end:
        main([__file__])
    assert end.value.code == 2
    assert "Horovod is not installed: python tools/build_horovod.py" in capsys.readouterr().err


@pytest.mark.parametrize("variable", RANK_VARIABLES)
def test_other_ranks_leave_rank_0_the_time_to_speak(variable, capsys, monkeypatch):
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "3")
    waited = []
    monkeypatch.setattr(speech.time, "sleep", waited.append)
    speech.say("not here")
    with pytest.raises(SystemExit) as end:
        speech.refuse("no script")
    assert end.value.code == 2
    assert waited == [speech.PATIENCE]
    assert capsys.readouterr().err == "horovod_detox: rank 3: no script\n"


# Random states.


def align_everywhere(states, groups, seed=None):
    """Align states, [rank][position]; return the new ones, and the names of those seeded."""
    states = [list(theirs) for theirs in states]

    def program(collectives):
        mine = states[collectives.rank]
        cells = [
            RandomState(name, lambda i=i: mine[i], lambda value, i=i: mine.__setitem__(i, value))
            for i, name in enumerate(("python", "NumPy", "PyTorch"))
        ]
        return align(cells, collectives, groups, seed)

    names = InProcessCluster(len(states)).run(program)
    assert all(theirs == names[0] for theirs in names)
    return states, names[0]


TWO_GROUPS = Groups(((0, 2), (1, 3)))


def test_members_that_agree_keep_their_states():
    states = [[1, 2, 3], [1, 9, 4], [1, 2, 3], [1, 9, 4]]
    assert align_everywhere(states, TWO_GROUPS) == (states, [])
    assert align_everywhere(states, TWO_GROUPS, seed=5) == (states, [])


def test_unseeded_members_are_seeded_as_by_seed_group():
    states = [[rank, rank + 10, rank + 20] for rank in range(4)]
    seeded, names = align_everywhere(states, TWO_GROUPS, seed=5)
    assert names == ["python", "NumPy", "PyTorch"]
    assert seeded[0] == seeded[2] == list(group_seeds(5, 0))
    assert seeded[1] == seeded[3] == list(group_seeds(5, 1))


def test_only_what_differs_inside_a_group_is_seeded_by_its_lowest_rank():
    states = [[1, 2, 3], [1, 2, 8], [1, 2, 3], [1, 2, 9]]
    seeded, names = align_everywhere(states, TWO_GROUPS)
    assert names == ["PyTorch"]
    assert seeded[0] == seeded[2] == [1, 2, 3]
    assert seeded[1] == seeded[3]
    assert seeded[1][:2] == [1, 2]
    again, _ = align_everywhere([[1, 2, 3], [1, 2, 8], [1, 2, 3], [1, 2, 7]], TWO_GROUPS)
    assert again == seeded  # whatever the other members had
    other, _ = align_everywhere([[1, 2, 3], [1, 2, 6], [1, 2, 3], [1, 2, 9]], TWO_GROUPS)
    assert other[1] != seeded[1]


@pytest.mark.parametrize(("state", "draw"), [(PYTHON, random.random), (NUMPY, np.random.rand)])
def test_states_of_this_process(state, draw):
    state.seed(1)
    before = state.digest()
    first = draw()
    assert state.digest() != before
    state.seed(1)
    assert state.digest() == before
    assert draw() == first
    state.seed(2)
    assert state.digest() != before


def test_the_state_of_torch():
    torch = pytest.importorskip("torch")
    pytest.importorskip("horovod.torch")
    from horovod_detox.torch.script import read_state

    torch.manual_seed(1)
    before = read_state()
    torch.rand(1)
    assert read_state() != before
    torch.manual_seed(1)
    assert read_state() == before


def test_the_state_of_tensorflow():
    tf = pytest.importorskip("tensorflow")
    pytest.importorskip("horovod.tensorflow")
    from horovod_detox.tensorflow.script import read_state, set_seed

    tf.random.set_seed(None)
    assert read_state() != read_state()  # unseeded states never agree
    PYTHON.seed(3)
    NUMPY.seed(3)
    others = PYTHON.digest(), NUMPY.digest()
    set_seed(1)
    before = read_state()
    drawn = tf.random.uniform([])
    assert read_state() != before
    set_seed(1)
    assert read_state() == before
    assert tf.random.uniform([]) == drawn
    assert (PYTHON.digest(), NUMPY.digest()) == others


# Dealing.


def test_data_is_dealt_to_groups_where_the_script_counts_ranks(capsys):
    job = Script()
    assert job.share("a sampler", 6, 5) == (6, 5)  # not initialised yet
    job.session = Session(Detox(group_size=3), ["host"] * 6)
    assert [job.share("a sampler", 6, rank) for rank in range(6)] == [(2, 0), (2, 1)] * 3
    assert job.share("a sampler", 4, 3) == (4, 3)
    assert job.share("a sampler", None, None) == (None, None)
    job.session = Session(Detox(group_size=3), ["host"])
    assert job.share("a sampler", 1, 0) == (1, 0)
    said = "horovod_detox: a sampler: deals to 2 groups instead of 6 ranks\n"
    assert capsys.readouterr().err == said


# Imports.

IMPORTS = """
import sys
from types import ModuleType
from horovod_detox.launcher import imports
from horovod_detox.launcher.imports import Finder
from horovod_detox.launcher.stand_in import Script

framework = sys.argv[1]
replaced = {}
stand_in = imports.stand_in

def record(theirs, our, more):
    replaced[theirs.__name__] = theirs, our
    return stand_in(theirs, our, more)

imports.stand_in = record
sys.meta_path.insert(0, imports.Finder(Script()))
exec(sys.argv[2])
assert not {"torch": {"tensorflow", "keras"}, "tensorflow": {"torch"}}[framework] & {*sys.modules}
assert {*imports.FRONTENDS[framework]} <= {*replaced}
for name, (theirs, our) in replaced.items():
    alias = sys.modules[name]
    missing = [n for n in vars(theirs) if not hasattr(alias, n)]
    assert not missing, (name, missing)
    for n, value in vars(our).items():
        if not n.startswith("_") and not isinstance(value, ModuleType) and n != "init":
            assert getattr(alias, n) is value, (name, n)
    assert name not in imports.FRONTENDS[framework] or "Frontend.init" in str(alias.init), name
"""


def imports(framework: str, code: str) -> subprocess.CompletedProcess[str]:
    """Import as a script does, and compare with Horovod's own modules."""
    pytest.importorskip(f"horovod.{framework}")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-c", IMPORTS, framework, code]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


TORCH = """
import horovod.torch as hvd
import horovod.torch.elastic
import horovod.torch.optimizer as o
from horovod.torch import DistributedOptimizer
from horovod.torch.compression import Compression
from horovod.torch.optimizer import DistributedOptimizer as D
import horovod_detox.torch as ours
import horovod
assert horovod.torch is hvd is sys.modules["horovod.torch"] and hvd is not ours
assert hvd.DistributedOptimizer is DistributedOptimizer is D is o.DistributedOptimizer
assert D is ours.DistributedOptimizer and Compression is ours.Compression is hvd.Compression
assert hvd.elastic.run and hvd.group is ours.group and hvd.rank is ours.rank
# Ours are bound to Horovod's own.
assert ours._context._hvd is not hvd
assert ours._context._hvd.DistributedOptimizer is not D
"""

TENSORFLOW = """
import horovod.keras.callbacks
import horovod.keras as hvd
from horovod.tensorflow.keras.callbacks import MetricAverageCallback
from horovod.tensorflow.keras import elastic
import horovod.tensorflow.elastic as tensorflow_elastic
import horovod.tensorflow as htf, horovod.tensorflow.keras as htk
import horovod_detox.tensorflow as ours, horovod_detox.keras as ours_keras
import horovod
assert horovod.keras is hvd and horovod.tensorflow is htf and htf.keras is htk
assert hvd.DistributedOptimizer is ours_keras.DistributedOptimizer
assert htf.DistributedGradientTape is ours.DistributedGradientTape
assert htk.DistributedOptimizer is ours.keras.DistributedOptimizer
callbacks = ours.keras.callbacks
assert MetricAverageCallback is callbacks.MetricAverageCallback
assert hvd.callbacks.MetricAverageCallback is htk.callbacks.MetricAverageCallback
assert horovod.keras.callbacks.BestModelCheckpoint is callbacks.BestModelCheckpoint
assert elastic.KerasState is ours.keras.elastic.KerasState
assert tensorflow_elastic.TensorFlowState is ours.elastic.TensorFlowState is htf.elastic.TensorFlowState
assert htf._executing_eagerly and ours._context._hvd is not htf
import keras
keras.Model._resolve_auto_jit_compile = lambda model: True  # as on a GPU
for asked, expected in (({}, False), ({"jit_compile": "auto"}, False), ({"jit_compile": True}, True)):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse", **asked)
    assert model.jit_compile is expected, asked
"""  # noqa: E501


@pytest.mark.parametrize(("framework", "code"), [("torch", TORCH), ("tensorflow", TENSORFLOW)])
def test_imports_get_ours_and_nothing_is_missing(framework, code):
    done = imports(framework, code)
    assert done.returncode == 0, done.stderr


def test_a_script_that_imports_horovod_detox_gets_everything_as_it_is(monkeypatch):
    finder = Finder(Script())
    monkeypatch.setitem(sys.modules, "horovod_detox.torch", sys)
    assert finder.find_spec("horovod.torch", None) is None
    assert finder.find_spec("torch", None) is None
    assert not finder.replaced


# Running.

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
    assert done.stderr == "one process: it trains plainly, there is nobody to vote with\n"
