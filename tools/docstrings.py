"""The public functions and classes of a frontend as Markdown, without importing it.

So the reference is the same with and without Horovod and the frameworks.
"""

import ast
import re
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "horovod_detox"
SECTIONS = ("Args", "Attributes", "Returns", "Raises")
CONTEXT = "horovod_detox.frontend.context"
WIDTH = 100
"""Columns of a line, as ruff formats the blocks of the pages."""


@dataclass(frozen=True)
class Public:
    """One public name.

    Attributes:
        name: as a script says it, after `hvd.`.
        signature: its call; empty where there is none.
        doc: the docstring.
    """

    name: str
    signature: str
    doc: str


def frontend(module: str, without: Collection[Public] = ()) -> str:
    """Return all that a module replaces or adds as Markdown, with a heading for each name."""
    told = sorted({*public(module)} - {*without}, key=lambda each: each.name)
    return "\n\n".join(map(entry, told))


def entry(public: Public) -> str:
    """Return one name as Markdown."""
    blocks = [f"## `{public.name}`"]
    if public.signature:
        blocks.append(f"```python\n{public.signature}\n```")
    return "\n\n".join([*blocks, markdown(public.doc)])


def public(module: str) -> Iterator[Public]:
    """Yield the public names that a module takes from this package, with their docstrings."""
    for node in parsed(module).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("horovod_detox"):
            for alias in node.names:
                if alias.asname == alias.name and not alias.name.startswith("_"):
                    yield found(alias.name, str(node.module))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname == "callbacks":
                    yield from of_module(alias.name, "callbacks.")
        elif isinstance(node, ast.Assign) and "_context." in ast.unparse(node.value):
            (target,) = node.targets
            yield found(ast.unparse(target), module)


def of_module(module: str, prefix: str = "") -> Iterator[Public]:
    """Yield the public classes and functions that a module defines."""
    definitions = (ast.ClassDef, ast.FunctionDef)
    for node in [node for node in parsed(module).body if isinstance(node, definitions)]:
        if not node.name.startswith("_") and ast.get_docstring(node):
            yield described(node, prefix)


def found(name: str, module: str) -> Public:
    """Return what a name of a module is, wherever it is defined.

    Raises:
        LookupError: when it is not found.
    """
    for node in parsed(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return described(node)
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return found(name, str(node.module))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            method = re.search(r"_context\.(\w+)", ast.unparse(node.value))
            if method:
                return found_method(method[1])
    raise LookupError(f"{module} has no {name}")


def found_method(name: str) -> Public:
    """Return a method of the session of a process, which frontends offer as a function."""
    (context,) = [
        node
        for node in parsed(CONTEXT).body
        if isinstance(node, ast.ClassDef) and node.name == "Context"
    ]
    for node in context.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return described(node)
    raise LookupError(f"Context has no {name}")


def described(node: ast.ClassDef | ast.FunctionDef, prefix: str = "") -> Public:
    """Return a definition by its signature and docstring."""
    name = prefix + node.name
    return Public(name, signature(node, name), ast.get_docstring(node) or "")


def signature(node: ast.ClassDef | ast.FunctionDef, name: str) -> str:
    """Return how something is called, without types; empty for a class without a constructor."""
    if isinstance(node, ast.ClassDef):
        makers = [each for each in node.body if getattr(each, "name", "") == "__init__"]
        if not makers:
            return ""
        (maker,) = makers
        assert isinstance(maker, ast.FunctionDef)
        arguments = maker.args
    else:
        arguments = node.args
    for each in ast.walk(arguments):
        if isinstance(each, ast.arg):
            each.annotation = None
    words = [word for word in _split(ast.unparse(arguments)) if word != "self"]
    words = [re.sub(r"=_[A-Z]+$", "=...", word) for word in words]
    words = [word.replace("'", '"') for word in words]
    call, body = f"hvd.{name}({', '.join(words)})", f"    {', '.join(words)}"
    if len(call) <= WIDTH:
        return call
    if len(body) > WIDTH:
        body = "\n".join(f"    {word}," for word in words)
    return f"hvd.{name}(\n{body}\n)"


def markdown(doc: str) -> str:
    """Return a docstring of Google's style as Markdown.

    >>> print(markdown("Add.\\n\\nArgs:\\n    x, y: numbers,\\n        or none.\\n\\n    x + y"))
    Add.
    <BLANKLINE>
    *Args*
    <BLANKLINE>
    - `x`, `y`: numbers, or none.
    <BLANKLINE>
    ```text
    x + y
    ```
    """
    blocks: list[str] = []
    for block in re.split(r"\n\n+", doc):
        title, _, rest = block.partition(":\n")
        if title in SECTIONS:
            blocks += [f"*{title}*", _listed(textwrap.dedent(rest))]
        elif block.startswith(">>>"):
            blocks.append(f"```python\n{block}\n```")
        elif block.startswith("    "):
            blocks.append(f"```text\n{textwrap.dedent(block)}\n```")
        else:
            blocks.append(block.strip())
    return "\n\n".join(blocks)


def _listed(section: str) -> str:
    """Return the entries of a section as a list; what is no `name: text` as a paragraph."""
    entries = re.sub(r"\n +", " ", section.strip()).split("\n")
    lines = []
    for each in entries:
        name, colon, text = each.partition(": ")
        names = ", ".join(f"`{word}`" for word in name.split(", "))
        lines.append(f"- {names}: {text}" if colon and _is_name(name) else f"- {each}")
    return "\n".join(lines)


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[\w*, ]+", text) is not None and len(text) < 80


def _split(arguments: str) -> list[str]:
    """Cut arguments at the commas outside of brackets."""
    parts, depth = [""], 0
    for character in arguments:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def parsed(module: str) -> ast.Module:
    """Return the syntax tree of a module of the package."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text())
