"""Objects from text such as `multi_krum(f=2)`, by a table of names and dataclasses."""

import ast
import difflib
import inspect
import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any

_CALL = re.compile(r"(?P<name>[^\W\d]\w*)\s*(?:\((?P<arguments>.*)\))?", re.DOTALL)
_one_at_a_time = threading.Lock()
"""`ast.parse` of Python 3.11 fails in threads (SystemError: recursion depth mismatch)."""


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Read `name` or `name(key=value, ...)`; values are Python literals or bare words.

    Raises:
        ValueError: when the text is neither.

    >>> parse("reverse(scale=100, mode=all)")
    ('reverse', {'scale': 100, 'mode': 'all'})
    """
    call = _CALL.fullmatch(text.strip())
    if call is None:
        raise ValueError(f"{text!r} is not of the form name or name(key=value, ...)")
    try:
        with _one_at_a_time:
            parsed = ast.parse(f"_({call['arguments'] or ''}\n)", mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r}: {error.msg}") from None
    if not isinstance(parsed, ast.Call) or not isinstance(parsed.func, ast.Name):
        raise ValueError(f"{text!r} is not of the form name or name(key=value, ...)")
    if parsed.args or any(keyword.arg is None for keyword in parsed.keywords):
        raise ValueError(f"{text!r}: give every value its name, as in {call['name']}(key=value)")
    if len({keyword.arg for keyword in parsed.keywords}) < len(parsed.keywords):
        raise ValueError(f"{text!r} gives a value twice")
    return call["name"], {str(k.arg): _literal(text, k.value) for k in parsed.keywords}


def split(text: str, separator: str) -> list[str]:
    """Cut the text at the separators outside of brackets.

    >>> split("clipping(radius=1e+3)+median", "+")
    ['clipping(radius=1e+3)', 'median']
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def build(
    table: Mapping[str, type], text: str, /, kind: str = "aggregator", **parameters: Any
) -> Any:
    """Build the dataclass that the text names, with the parameters in it and those given here.

    Raises:
        ValueError: for a name that is not in the table, a parameter that is unknown, missing or
            given twice, or one that the class refuses.
    """
    name, given = parse(text)
    if name not in table:
        raise ValueError(f"there is no {kind} {name!r}{_suggest(name, table)}")
    if twice := sorted(given.keys() & parameters.keys()):
        raise ValueError(f"{name}: {', '.join(twice)} is given twice")
    given |= parameters
    known = {field.name: field for field in fields(table[name]) if field.init}
    for key in given:
        if key not in known:
            raise ValueError(f"{name} has no parameter {key!r}{_suggest(key, known)}")
    for key, field in known.items():
        if key not in given and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} needs a value for {key}: {name}({key}=...)")
    return table[name](**given)


def meanings(cls: type) -> dict[str, str]:
    """Return what the docstring of a class says of each of its attributes.

    >>> class Point:
    ...     '''A point.
    ...
    ...     Attributes:
    ...         x, y: where it is,
    ...             in metres.
    ...     '''
    >>> meanings(Point)
    {'x': 'where it is, in metres.', 'y': 'where it is, in metres.'}
    """
    section = re.search(r"^Attributes:\n((?: .*\n|\n)*)", f"{inspect.getdoc(cls)}\n", re.MULTILINE)
    text = section[1] if section else ""
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {
        name: re.sub(r"\s+", " ", text) for names, text in entries for name in names.split(", ")
    }


def _literal(text: str, node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{text!r}: {ast.unparse(node)} is not a plain value") from None


def _suggest(name: str, known: Collection[str]) -> str:
    if not known:
        return ": it takes none"
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
    hint = f": did you mean {close[0]!r}?" if close else ";"
    return f"{hint} Known: {', '.join(sorted(known))}"
