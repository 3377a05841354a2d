"""The console script: what it prints, and how it refuses bad input."""

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest

from horovod_detox.cli.main import COMMANDS, main
from horovod_detox.cli.plan import parse_hosts
from horovod_detox.planning.advice import advise
from horovod_detox.planning.comparison import Job, compare
from horovod_detox.remedies import REMEDIES

ROOT = Path(__file__).parents[2]
FAULTS = "plan --ranks 4 --byzantine 1"
DOCUMENTATION = (ROOT / "docs" / "planning.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_script_is_registered():
    assert PROJECT["scripts"] == {"horovod-detox": f"{main.__module__}:{main.__name__}"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_run(name):
    if name == "simulate":
        pytest.importorskip("torch")
    module = import_module(COMMANDS[name][0])
    assert callable(module.add_arguments)
    assert callable(module.run)


def test_the_extra_brings_what_commands_need():
    packages = {how.removeprefix("pip install ") for how in REMEDIES.values() if "pip" in how}
    lab = {requirement.partition(">")[0] for requirement in PROJECT["optional-dependencies"]["lab"]}
    assert packages - {"torch", "tensorflow"} <= lab


def test_json_is_the_comparison_and_the_advice(capsys):
    hosts = ("--hosts", "a:20,b:20,c:5")
    assert main(["plan", "--ranks", "45", "--byzantine", "5", "--json", *hosts]) == 0
    printed = json.loads(capsys.readouterr().out)
    comparison = compare(Job(45, 5, hosts=("a",) * 20 + ("b",) * 20 + ("c",) * 5))
    expected = json.dumps({**asdict(comparison), "advice": advise(comparison)})
    assert printed == json.loads(expected)
    assert len(printed["advice"]) == 4
    assert printed["redundancies"][1]["captured"][0] == pytest.approx(0.59728, abs=1e-5)


def test_tables(capsys):
    options = ["--ranks", "45", "--byzantine", "5", "--parameters", "11e6", "--hosts", "9"]
    assert main(["plan", *options]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "1 45 of 1 5 5: 100 % 5 (11.1 %) 0 %" in lines
    assert "3 480 x 3.0 96 x 3.0 56.71 MB (x 0.66) 836 MB 103.6 MB" in lines
    assert "3 median of 5 x mean 2 100 % fits" in lines
    assert "3 median 7 100 % fits" in lines
    assert any(line.startswith("3 spread host0 (5 ranks) 0 of 15 0 mean") for line in lines)
    assert any(line.startswith("- Recommended: Detox(group_size=3") for line in lines)


def test_the_documentation_shows_what_is_printed(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    shown = re.findall(r"^\$ horovod-detox (plan .*)\n([^`]*)```", DOCUMENTATION, re.MULTILINE)
    assert len(shown) == 2
    for arguments, output in shown:
        assert main(arguments.split()) == 0
        assert capsys.readouterr().out.strip() == output.strip()


def test_the_documentation_shows_what_is_printed_of_faults(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    found = re.search(
        r"`horovod-detox (plan [^`]*--steps[^`]*)`[^`]*```text\n(.*?)```", DOCUMENTATION, re.S
    )
    assert found is not None
    assert main(found[1].split()) == 0
    assert found[2] in capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_into_a_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    faults = ["--fault-rate", "1e-7", "--steps", "1000000"]
    assert main(["plan", "--ranks", "45", "--byzantine", "5", "--hosts", "a:23,b:22", *faults]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert not any(line.endswith(" ") for line in lines)
    cells = [line.split() for line in lines if line.startswith(" ")]
    assert not any(row[0] in ("%", "MB", "%)") for row in cells), "a number is apart from its unit"


def test_a_module_of_an_extra_is_told_in_one_line(capsys, monkeypatch):
    for name in [*sys.modules]:
        if name.startswith(("horovod_detox.cli.simulate", "horovod_detox.lab")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["simulate"]) == 2
    error = capsys.readouterr().err
    assert error == "horovod-detox simulate: it needs torch: pip install torch\n"


def test_a_module_of_no_extra_is_a_bug_and_raises(monkeypatch):
    monkeypatch.setitem(COMMANDS, "plan", ("horovod_detox.cli.missing", ""))
    with pytest.raises(ModuleNotFoundError, match=r"horovod_detox\.cli\.missing"):
        main(["plan"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "horovod-detox: the following arguments are required: command"),
        ("paln", "horovod-detox: argument command: invalid choice: 'paln'"),
        ("plan", "plan: the following arguments are required: --ranks, --byzantine"),
        ("plan --ranks x --byzantine 1", "plan: argument --ranks: invalid int value: 'x'"),
        ("plan --ranks 0 --byzantine 0", "plan: ranks = 0: it must be at least 1"),
        ("plan --ranks 4 --byzantine 5", "plan: byzantine = 5: it must be from 0 to"),
        ("plan --ranks 4 --byzantine 1 --hosts a,b", "plan: hosts = 'a,b' is neither a number"),
        ("plan --ranks 4 --byzantine 1 --hosts a:x", "plan: hosts = 'a:x' is neither a number"),
        ("plan --ranks 4 --byzantine 1 --hosts :4", "plan: hosts = ':4' is neither a number"),
        ("plan --ranks 4 --byzantine 1 --hosts a:2,b:3", "plan: the hosts have 5 slots for 4"),
        ("plan --ranks 4 --byzantine 1 --hosts 5", "plan: hosts = 5: it must be from 1 to 4"),
        ("plan --ranks 4 --byzantine 1 --steps 9", "plan: --fault-rate and --steps belong toget"),
        ("plan --ranks 4 --byzantine 1 --fault-rate 0.1", "--fault-rate and --steps belong toge"),
        (f"{FAULTS} --fault-rate 1 --steps 9", "plan: fault_rate = 1.0: it must be a chance, from"),
        (f"{FAULTS} --fault-rate 0.1 --steps 0", "plan: steps = 0: it must be at least 1"),
        (f"{FAULTS} --fault-rate 0.1 --steps 9 --scrub-every 0", "plan: scrub_every = 0: it must"),
        ("plan --ranks 4 --byzantine 1 --hosts 0", "plan: hosts = 0: it must be from 1 to 4"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, capsys):
    assert exit_code(arguments.split()) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def exit_code(arguments):
    try:
        return main(arguments)
    except SystemExit as stop:
        return stop.code


def test_hosts_get_ranks_in_order_and_evenly():
    assert parse_hosts("3", 7) == ("host0",) * 3 + ("host1",) * 2 + ("host2",) * 2
    assert parse_hosts("n1:2,n2:1", 3) == ("n1", "n1", "n2")


def test_the_script_ends_with_its_exit_code():
    code = "import sys; from horovod_detox.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "plan", "--ranks", "2", "--byzantine", "3"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
