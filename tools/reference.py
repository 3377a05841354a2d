"""Write what the documentation says of settings, rules, attacks and frontends from the code.

    python tools/reference.py

Such a part of a page stands between `<!-- NAME -->` and `<!-- end -->`. A test compares all of them
with what the code says now.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import docstrings

from horovod_detox import Detox
from horovod_detox.aggregators import AGGREGATORS, PRE_AGGREGATORS, Aggregator, Hierarchy, Mean
from horovod_detox.aggregators.mixing import PreAggregator
from horovod_detox.attacks import ATTACKS, Attack, FlipState
from horovod_detox.registry import meanings

ROOT = Path(__file__).parents[1]
FRONT = ("group_size", "inner", "outer", "num_byzantine", "placement", "timeout")
"""The settings that most jobs need."""
NO_PAPER = "*Source*: no paper; a fault as hardware and software make it."
TORCH = "horovod_detox.torch"
TENSORFLOW = "horovod_detox.tensorflow"
KERAS = "horovod_detox.tensorflow.keras"
REPORT = ("FaultReport", "Event", "Cause")
ERRORS = {
    "horovod_detox.exchange.step": "NoMajority",
    "horovod_detox.determinism.first_step": "NotDeterministic",
    "horovod_detox.exchange.control": "RanksDisagree",
    "horovod_detox.exchange.waits": "ExchangeTimeout",
    "horovod_detox.vote.agreement": "NoAgreement",
}


def settings(names: Iterable[str]) -> str:
    """Return some settings as a table."""
    wanted = {*names}
    rows = [field for field in fields(Detox) if field.name in wanted]
    lines = [
        f"| `{field.name}` | {_default(field)} | {_linked(meanings(Detox)[field.name])} |"
        for field in rows
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *lines])


def aggregators(table: Mapping[str, type[Aggregator]] | Mapping[str, type[PreAggregator]]) -> str:
    """Return rules as a table."""
    lines = [
        f"| [`{_call(name, rule)}`](#{name}) | {_sentence(rule)} | {_bound(rule)} |"
        for name, rule in table.items()
    ]
    return "\n".join(["| name | result | needs |", "|---|---|---|", *lines])


def attacks() -> str:
    """Return attacks as a table."""
    lines = [
        f"| [`{_call(name, attack)}`](#{name}) | {_sentence(attack)} | {_kind(attack)} |"
        for name, attack in ATTACKS.items()
    ]
    return "\n".join(["| name | what is sent | faulty ranks |", "|---|---|---|", *lines])


def rule(name: str, cls: type) -> str:
    """Return a rule or an attack with its formula, bound, source and example."""
    sentence, *blocks = re.split(r"\n\n+", inspect.getdoc(cls) or "")
    formula = [block for block in blocks if block.startswith("    ")]
    example = [block for block in blocks if block.startswith(">>>")]
    words = [block for block in blocks if block not in formula + example]
    facts = [*formula]
    if issubclass(cls, Attack):
        facts.append(f"*Faulty ranks*: {_kind(cls)}.")
        if not any(re.search(r"\b(19|20)\d\d\b", text) for text in words):
            words.append(NO_PAPER)
    else:
        facts.append(f"*Bound*: {_bound(cls)}.")
    text = "\n\n".join([sentence, *facts, *words, *example])
    return f"### `{name}`\n\n{docstrings.markdown(text)}"


def rules(table: Mapping[str, type]) -> str:
    """Return every rule or attack of a table."""
    return "\n\n".join(rule(name, cls) for name, cls in table.items())


def report() -> str:
    """Return the classes of a fault report."""
    found = [docstrings.found(name, "horovod_detox.vote.report") for name in REPORT]
    return "\n\n".join(f"### `{each.name}`\n\n{docstrings.markdown(each.doc)}" for each in found)


def errors() -> str:
    """Return the errors that a script may catch as a table."""
    lines = []
    for module, name in ERRORS.items():
        sentence = " ".join(docstrings.found(name, module).doc.partition("\n\n")[0].split())
        lines.append(f"| `{name}` | `{module}` | {sentence} |")
    return "\n".join(["| error | module | meaning |", "|---|---|---|", *lines])


def keras() -> str:
    """Return what the frontend of Keras has beside that of TensorFlow, and what it has of it."""
    of_tensorflow = {*docstrings.public(TENSORFLOW)}
    same = sorted(each.name for each in {*docstrings.public(KERAS)} & of_tensorflow)
    names = ", ".join(f"[`{name}`](api-tensorflow.md#{name.lower()})" for name in same)
    text = docstrings.frontend(KERAS, without=of_tensorflow)
    return f"Those of `horovod_detox.tensorflow`: {names}.\n\n{text}"


def tables() -> dict[str, str]:
    """Return every part of the documentation that is written from the code, by its name."""
    every = [field.name for field in fields(Detox)]
    return {
        "settings that most jobs need": settings(FRONT),
        "other settings": settings(name for name in every if name not in FRONT),
        "aggregators": aggregators(AGGREGATORS),
        "pre-aggregators": aggregators(PRE_AGGREGATORS),
        "every aggregator": rules(AGGREGATORS),
        "every pre-aggregator": rules(PRE_AGGREGATORS),
        "the hierarchy": docstrings.markdown(inspect.getdoc(Hierarchy) or ""),
        "attacks": attacks(),
        "every attack": rules(ATTACKS),
        "fault report": report(),
        "errors": errors(),
        "frontend of torch": docstrings.frontend(TORCH),
        "frontend of tensorflow": docstrings.frontend(TENSORFLOW),
        "frontend of keras": keras(),
    }


def written(page: str) -> str:
    """Return a page with its parts as the code has them now."""
    parts = tables()

    def part(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n{parts[found[1]]}\n<!-- end -->"

    return re.sub(r"<!-- ([a-z -]+) -->\n.*?<!-- end -->", part, page, flags=re.DOTALL)


def pages() -> list[Path]:
    """Return the pages with such parts."""
    names = (
        "settings",
        "aggregators",
        "pre-aggregators",
        "attacks",
        "faults",
        "api-torch",
        "api-tensorflow",
    )
    return [ROOT / "docs" / f"{name}.md" for name in (*names, "api-keras")]


def _default(field: Field[Any]) -> str:
    value = field.default
    if isinstance(value, int) and value >= 1 << 20:
        return f"{value >> 20} MiB"
    return f'`"{value}"`' if isinstance(value, str) else f"{value}"


def _linked(text: str) -> str:
    """Make links of the pages that a text names.

    >>> _linked("see docs/tolerance.md")
    'see [tolerance](tolerance.md)'
    """
    return re.sub(r"docs/([a-z-]+)\.md", r"[\1](\1.md)", text)


def _call(name: str, cls: type) -> str:
    inherited = {field.name for field in fields(Attack)} if issubclass(cls, Attack) else set()
    parameters = [field.name for field in fields(cls) if field.repr and field.name not in inherited]
    return f"{name}({', '.join(parameters)})" if parameters else name


def _sentence(cls: type) -> str:
    """Return the first paragraph of a docstring."""
    return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def _bound(cls: type) -> str:
    if not issubclass(cls, Aggregator):
        return ""
    if cls is Mean:
        return "`f = 0`"
    factor, constant = cls.bound
    return f"`n >= {factor}f + {constant}`"


def _kind(attack: type[Attack]) -> str:
    if attack.poisons:
        return "train on other labels"
    if issubclass(attack, FlipState):
        return "hold something else, independent of each other"
    sees = "see all honest gradients" if attack.omniscient else "see their own gradients"
    return sees if attack.colluding else f"{sees}, independent of each other"


if __name__ == "__main__":
    for page in pages():
        page.write_text(written(page.read_text()))
