"""Unmodified scripts: what the launcher reads, imports, says and refuses, in one process."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from horovod_detox import Detox, process
from horovod_detox.frontend.session import Session
from horovod_detox.launcher import speech
from horovod_detox.launcher.arguments import flag_of, parse
from horovod_detox.launcher.imports import Finder
from horovod_detox.launcher.launch import main
from horovod_detox.launcher.stand_in import Script
from horovod_detox.registry import meanings

ROOT = Path(__file__).parents[2]
RANK_VARIABLES = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
OTHER_THAN_DEFAULT = {
    "group_size": "5",
    "inner": "multi_krum(f=1)",
    "outer": "bulyan",
    "buckets": "2",
    "num_byzantine": "none",
    "momentum": "0.5",
    "placement": "packed",
    "fingerprint": "blake3",
    "max_skipped_steps": "3",
    "exchange": "sharded",
    "one_round_bytes": "0",
    "overlap_bytes": "7",
    "scrub_every": "9",
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
    assert waited == [process.PATIENCE]
    assert capsys.readouterr().err == "horovod_detox: rank 3: no script\n"


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
import tempfile, keras, numpy as np
keras.Model._resolve_auto_jit_compile = lambda model: True  # as on a GPU
for asked, expected in (({}, False), ({"jit_compile": "auto"}, False), ({"jit_compile": True}, True)):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse", **asked)
    assert model.jit_compile is expected, asked
model.compile("sgd", "mse", experimental_run_tf_function=False)  # as in Horovod's examples
model(np.ones((1, 2)))
model.fit(np.ones((4, 2)), np.ones(4), verbose=0)
with tempfile.TemporaryDirectory() as folder:
    model.save(folder + "/model.keras")
    loaded = keras.models.load_model(folder + "/model.keras")
assert loaded.compiled and loaded.optimizer is not None
assert loaded.evaluate(np.ones((4, 2)), np.ones(4), verbose=0) >= 0
import horovod.tensorflow.util, horovod_detox.tensorflow.util
import horovod_detox.tensorflow.data.compute_service as service
assert service.TfDataServiceConfig and ours.shard is horovod_detox.tensorflow.data.shard
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
