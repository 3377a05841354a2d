"""Every text that a person may read stands in a list, so that each new one is read."""

import difflib

import pytest

from tools.messages import LIST, texts, written

ASK = """run: python tools/messages.py
and read what is new: does it say what happened, on which rank, and what to do?
"""


def test_the_list_of_messages_is_as_the_code_says():
    listed, now = LIST.read_text().splitlines(), written().splitlines()
    changed = [line for line in difflib.ndiff(listed, now) if line[:2] in ("+ ", "- ")]
    assert not changed, "\n".join([ASK, *changed])


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (
            'raise ValueError(f"rank {r!r}: " f"{n:.0f} votes " + NEEDS + ".")',
            ["rank {r}: {n} votes {NEEDS}."],
        ),
        (
            'def f():\n    """Return it."""\n    return f"rank {1 + rank} left"',
            ["rank {1 + rank} left"],
        ),
        ('WHAT = {"a": "it drew numbers"}; log.info("%s", "word")', ["it drew numbers"]),
        ('parser.add_argument("--ranks", help="number of ranks")', ["number of ranks"]),
        ('"A docstring." ; end = "  \\n"', []),
    ],
)
def test_texts_of_more_than_one_word_are_found(source, found):
    assert texts(source) == found
