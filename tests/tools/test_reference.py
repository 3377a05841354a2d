"""The tables of the documentation are those that the code makes."""

import re
from dataclasses import fields

import docstrings
import pytest

from horovod_detox import Detox
from horovod_detox.aggregators import AGGREGATORS, PRE_AGGREGATORS, Aggregator
from horovod_detox.attacks import ATTACKS
from tools.reference import (
    KERAS,
    NO_PAPER,
    ROOT,
    TENSORFLOW,
    TORCH,
    pages,
    rule,
    settings,
    tables,
    written,
)

RULES = AGGREGATORS | PRE_AGGREGATORS | ATTACKS
OF_THIS_PACKAGE = {"mean", "clipping"}
"""Rules that need no source."""


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_pages_are_as_the_code_says(page):
    text = page.read_text()
    assert "<!-- end -->" in text
    assert text == written(text), "run: python tools/reference.py"


def test_every_setting_and_rule_is_told():
    text = "".join(page.read_text() for page in pages())
    for field in fields(Detox):
        assert f"| `{field.name}" in text
    for name in RULES:
        assert f"| [`{name}" in text
        assert f"\n### `{name}`\n" in text


@pytest.mark.parametrize("name", RULES)
def test_every_rule_and_attack_has_a_formula_a_bound_a_source_and_an_example(name):
    text = rule(name, RULES[name])
    assert "```text\n" in text
    assert re.search(r"\*Bound\*: `(n >= \d|f = 0)|\*Faulty ranks\*: ", text)
    assert re.search(r"\b20\d\d\b", text) or NO_PAPER in text or name in OF_THIS_PACKAGE
    assert ">>> " in text or name == "label_flip"  # which has its example in a method


def test_the_check_of_rules_can_fail():
    class Rule(Aggregator):
        """Do nothing."""

    assert "```text" not in rule("rule", Rule)
    assert ">>>" not in rule("rule", Rule)


@pytest.mark.parametrize("module", [TORCH, TENSORFLOW, KERAS])
def test_every_public_name_of_a_frontend_is_told(module):
    told = {*docstrings.public(module)}
    assert {"DistributedOptimizer", "init", "fault_report"} <= {each.name for each in told}
    assert all(each.doc for each in told)
    with pytest.raises(LookupError, match="has no nothing"):
        docstrings.found("nothing", module)


def test_an_old_table_is_found():
    old = "before\n<!-- other settings -->\n| old |\n<!-- end -->\nafter\n"
    assert tables()["other settings"] in written(old)
    assert written(old).startswith("before\n")
    assert written(old).endswith("after\n")


def test_the_front_page_does_not_begin_with_schemes():
    assert "leaders" not in settings(("group_size", "inner", "outer", "num_byzantine"))
    front = (ROOT / "README.md").read_text()
    assert "`exchange`" not in front
