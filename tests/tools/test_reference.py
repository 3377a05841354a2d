"""The tables of the documentation are those that the code makes."""

from dataclasses import fields

import pytest

from horovod_detox import Detox
from horovod_detox.aggregators import AGGREGATORS, PRE_AGGREGATORS
from tools.reference import ROOT, pages, settings, tables, written


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_pages_are_as_the_code_says(page):
    text = page.read_text()
    assert "<!-- end -->" in text
    assert text == written(text), "run: python tools/reference.py"


def test_every_setting_and_rule_is_told():
    pages_of_all = "".join(
        (ROOT / "docs" / name).read_text() for name in ("settings.md", "aggregators.md")
    )
    for name in [*(field.name for field in fields(Detox)), *AGGREGATORS, *PRE_AGGREGATORS]:
        assert f"| `{name}" in pages_of_all


def test_an_old_table_is_found():
    old = "before\n<!-- other settings -->\n| old |\n<!-- end -->\nafter\n"
    assert tables()["other settings"] in written(old)
    assert written(old).startswith("before\n")
    assert written(old).endswith("after\n")


def test_the_front_page_does_not_begin_with_schemes():
    assert "leaders" not in settings(("group_size", "inner", "outer", "num_byzantine"))
    front = (ROOT / "README.md").read_text()
    assert "`exchange`" not in front
