"""Links and anchors lead somewhere, no page is out of reach, and the front page is short."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import LANGUAGES, ROOT, anchors, blocks, links, pages, prose

FRONT = ROOT / "README.md"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def broken(page: Path, text: str) -> list[str]:
    """Return the links of a page that lead nowhere."""
    found = []
    for line, link in links(text):
        path, _, anchor = link.partition("#")
        if re.match(r"https?:", path):
            continue
        target = (page.parent / path).resolve() if path else page
        there = text if target == page else target.read_text() if target.suffix == ".md" else ""
        if not target.exists() or (anchor and anchor not in anchors(there)):
            found.append(f"{name(page)}:{line}: {link}")
    return found


@pytest.mark.parametrize("page", pages(), ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(page, page.read_text()) == []


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("[a](docs/none.md)", "docs/none.md"),
        ("x\n[a](docs/hosts.md#none)", "docs/hosts.md#none"),
        ("# A\n[a](#b)", "#b"),
        ("![a](docs/none.svg)", "docs/none.svg"),
    ],
)
def test_the_check_of_links_can_fail(text: str, link: str) -> None:
    try:
        found = broken(FRONT, text)
    except FileNotFoundError:
        found = [f"README.md:1: {link}"]
    assert found == [f"README.md:{text.count(chr(10)) + 1}: {link}"]


def test_no_page_is_an_orphan() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    listed = {
        line.strip().rpartition("<")[2].removesuffix(">")
        for block in blocks(index)
        if block.language == "{toctree}"
        for line in block.text.splitlines()
        if line.strip() and not line.startswith(":")
    }
    there = {
        str(page.relative_to(ROOT / "docs").with_suffix(""))
        for page in (ROOT / "docs").rglob("*.md")
    }
    assert listed == there - {"index"}


def test_the_front_page_is_short() -> None:
    lines = FRONT.read_text().splitlines()
    assert len(lines) <= 130
    assert max(map(len, lines)) <= 120


def test_the_front_page_reaches_every_kind_of_page() -> None:
    reached = {link.partition("#")[0] for _, link in links(FRONT.read_text())}
    for page in ("index", "pytorch", "keras", "migration", "planning", "threat-model", "promises"):
        assert f"docs/{page}.md" in reached


@pytest.mark.parametrize("page", pages(), ids=name)
def test_every_block_says_what_it_is(page: Path) -> None:
    assert {block.language.split()[0] for block in blocks(page.read_text())} <= LANGUAGES


@pytest.mark.parametrize("page", pages(), ids=name)
def test_a_list_is_not_cut_by_a_blank_line(page: Path) -> None:
    """Markdown then makes two lists of it, or one whose entries are paragraphs."""
    cut = re.findall(r"^- .*(?:\n  .*)*\n\n(- .*)", prose(page.read_text()), re.MULTILINE)
    assert cut == []
