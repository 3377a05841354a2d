"""Write every text with which the package may speak to a person, module by module.

    python tools/messages.py

These are errors, warnings, lines of the log, of the console scripts and of their help: every text
of more than one word that is no docstring. A test compares the list with what the code says now.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tests" / "messages.txt"
HEAD = """\
Every text with which the package may speak to a person. Do not edit: python tools/messages.py
Does each say what happened, on which rank, and what to do? Is it plain English?
"""


def texts(source: str) -> list[str]:
    r"""Return the texts of a module in the order of its lines, with values as {name}.

    >>> texts('raise ValueError(f"rank {rank}: no majority in " + "this group")')
    ['rank {rank}: no majority in this group']
    >>> texts('"A docstring is none."')
    []
    """
    return [text for text in _texts(ast.parse(source)) if any(map(str.isalpha, text))]


def written() -> str:
    """Return the list as the code has it now."""
    parts = [HEAD]
    for path in sorted((ROOT / "horovod_detox").rglob("*.py")):
        if found := texts(path.read_text()):
            parts.append("\n".join([f"{path.relative_to(ROOT)}", *map(_line, found), ""]))
    return "\n".join(parts)


def _texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if (text := _text(node)) is not None and " " in text.strip():
        yield text
        return
    for child in ast.iter_child_nodes(node):
        yield from _texts(child)


def _text(node: ast.AST) -> str | None:
    """Return what an expression says, or None when it is not made of texts."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_text(value) or "" for value in values)
        case ast.FormattedValue(value=value):
            return f"{{{ast.unparse(value)}}}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = _text(left), _text(right)
            if any(part is not None for part in parts):
                sides = zip(parts, (left, right), strict=True)
                return "".join(f"{{{ast.unparse(side)}}}" if p is None else p for p, side in sides)
    return None


def _line(text: str) -> str:
    return "  " + text.replace("\n", "\\n")


if __name__ == "__main__":
    LIST.write_text(written())
