"""Objects from text."""

from dataclasses import dataclass, field

import pytest

from horovod_detox.registry import build, parse, split


@dataclass
class Shape:
    sides: int
    name: str = "plain"
    tags: tuple[str, ...] = ()
    area: float = field(default=0.0, init=False)

    def __post_init__(self):
        if self.sides < 3:
            raise ValueError(f"{self.sides} sides are too few")


@dataclass
class Dot:
    pass


TABLE = {"shape": Shape, "dot": Dot}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("median", ("median", {})),
        ("  median  ", ("median", {})),
        ("median()", ("median", {})),
        ("krum(f=2)", ("krum", {"f": 2})),
        ("krum ( f = 2 , m = None )", ("krum", {"f": 2, "m": None})),
        ("a(x=-1.5e+3, y=(1, 2), z='b c', w=True)",
         ("a", {"x": -1500.0, "y": (1, 2), "z": "b c", "w": True})),
        ("a(mode=spread,)", ("a", {"mode": "spread"})),
        ("a(text=')')", ("a", {"text": ")"})),
    ],
)  # fmt: skip
def test_parse(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not of the form"),
        ("krum(f=2", "is not of the form"),
        ("krum)f=2(", "is not of the form"),
        ("2krum", "is not of the form"),
        ("krum(f=2)x", "is not of the form"),
        ("krum(f=2).real()", "is not of the form"),
        ("krum(2)", r"give every value its name, as in krum\(key=value\)"),
        ("krum(**{})", "give every value its name"),
        ("krum(f=)", "krum"),
        ("krum(f=1, f=2)", "gives a value twice"),
        ("krum(f=1; 2)", "krum"),
        ("krum(f=open('x'))", r"open\('x'\) is not a plain value"),
        ("krum(f=1+x)", "is not a plain value"),
        ("krum(f=1)+(2)", "is not of the form|krum"),
        ("krum(f=1) #", "is not of the form"),
    ],
)
def test_parse_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_split():
    assert split("a+b(c='+', d=[1+2])+e", "+") == ["a", "b(c='+', d=[1+2])", "e"]
    assert split("a", "+") == ["a"]
    assert split(" a + b(c=1e+3) ", "+") == ["a", "b(c=1e+3)"]
    assert split("", "+") == [""]


def test_build():
    assert build(TABLE, "shape(sides=3)") == Shape(3)
    assert build(TABLE, "shape", sides=4, name="x") == Shape(4, "x")
    assert build(TABLE, "shape(name=x)", sides=4) == Shape(4, "x")
    assert build(TABLE, "dot") == Dot()


@pytest.mark.parametrize(
    ("text", "parameters", "message"),
    [
        ("shap(sides=3)", {}, "there is no figure 'shap': did you mean 'shape'? Known: dot, shape"),
        ("zzz", {}, "there is no figure 'zzz'; Known: dot, shape"),
        ("shape", {}, "shape needs a value for sides: shape(sides=...)"),
        ("shape(sides=3, nam=x)", {}, "has no parameter 'nam': did you mean 'name'? Known: name"),
        ("shape(sides=3)", {"area": 2.0}, "has no parameter 'area'"),
        ("shape(sides=3)", {"sides": 4}, "shape: sides is given twice"),
        ("dot(x=1)", {}, "dot has no parameter 'x': it takes none"),
        ("shape(sides=2)", {}, "2 sides are too few"),
    ],
)
def test_build_explains(text, parameters, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        build(TABLE, text, kind="figure", **parameters)
    assert message in str(caught.value)
