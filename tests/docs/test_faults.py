"""What docs/faults.md quotes is what the log says, and its tests exist."""

import logging
import re

from horovod_detox.vote.groups import Groups
from horovod_detox.vote.ledger import Ledger
from horovod_detox.vote.majority import Verdict, Vote
from horovod_detox.vote.report import (
    DATA,
    DIVERGENCE,
    MISCALCULATION,
    OF_RANDOM,
    OUT_OF_STEP,
    RECEPTION,
    STATE,
    Cause,
    Findings,
)
from tests.docs.pages import ROOT
from tests.test_promises import exists

TABLE = (ROOT / "docs" / "faults.md").read_text().partition("## Who was at fault")[0]
FINE = Vote((0,))
MEAN = "buffers/norm.running_mean"


def rows() -> list[list[str]]:
    """Return the cells of the rows that tell of a fault."""
    lines = [line for line in TABLE.splitlines() if line.startswith("| ")]
    cells = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines[1:]]
    return [row for row in cells if not row[0].startswith("**")]


def logged(step: int, **found) -> None:
    """Have a new account say what was found in a step."""
    record = {"verdict": Verdict((FINE, FINE)), "findings": Findings()} | found
    Ledger(Groups(((0, 1, 2), (3, 4, 5)))).record(step, **record)


def outvoted(step: int, rank: int, cause: Cause | None = None) -> None:
    causes = {} if cause is None else {rank: cause}
    logged(step, verdict=Verdict((Vote((1,), (rank,)), FINE)), findings=Findings(causes))


def drifted(step: int, rank: int, *what: str, files: tuple[str, ...] = ()) -> None:
    cause = Cause(STATE, what, is_healed=True, files=files)
    logged(step, findings=Findings(drifts={rank: cause}))


def say_all() -> None:
    """Have the account say all that the page quotes."""
    outvoted(120, 2)
    outvoted(120, 0)
    lasting = Ledger(Groups(((0, 1, 2), (3, 4, 5))))
    for step in range(120, 130):
        lasting.record(step, Verdict((Vote((1,), (2,)), FINE)))
    logged(120, verdict=Verdict((Vote(None), FINE)))
    logged(120, non_finite=[0])
    logged(120, named={MISCALCULATION: [2]})
    logged(121, named={DIVERGENCE: [2]})
    logged(121, named={OUT_OF_STEP: [2]})
    logged(120, named={RECEPTION: [2]})
    logged(120, suspects={(1, 2)})
    outvoted(120, 2, Cause(STATE, ("parameters/fc.weight",), is_healed=True))
    both = ("optimizer/fc.weight.exp_avg", "parameters/fc.weight")
    outvoted(121, 2, Cause(STATE, both, is_healed=True))
    outvoted(120, 0, Cause(OF_RANDOM, ("random/torch",), is_healed=True))
    outvoted(120, 2, Cause(DATA))
    drifted(200, 2, "parameters/rows.weight")
    drifted(200, 2, MEAN)
    drifted(120, 0, "parameters/fc.weight")
    drifted(121, 0, MEAN, files=("checkpoint.pt.wrong",))
    logged(200, findings=Findings(undecided={MEAN: (0, 1, 2)}))


def test_every_row_names_a_test_that_exists():
    assert len(rows()) > 25
    assert all(len(row) == 4 for row in rows())
    assert [row[-1] for row in rows() if not exists(row[-1])] == []


def test_the_line_at_the_end_is_quoted_as_it_is():
    text = (ROOT / "horovod_detox" / "replicas" / "files.py").read_text()
    said = "".join(re.findall(r'"(saved after[^"]*)"\n\s*"([^"]*)"', text)[0])
    assert f"`{said % 'checkpoint.pt'}`" in TABLE


def test_what_is_quoted_is_what_the_log_says(caplog):
    with caplog.at_level(logging.WARNING, logger="horovod_detox"):
        say_all()
    quoted = {line for row in rows() for line in re.findall(r"`(step [^`]*)`", row[2])}
    quoted = {line for line in quoted if "..." not in line}
    assert quoted <= {*caplog.messages}
    assert len(quoted) >= 18
