"""Where the gradient of each parameter lies in the flat copy that is voted on."""

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

WORD = 8
_DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
SIGN = "sign"
"""The dtype of elements that travel as one bit: 64 to a word, the first in the lowest bit."""


@dataclass(frozen=True)
class Segment:
    """One flat buffer of one dtype inside a copy.

    Attributes:
        dtype: name of a floating dtype, or SIGN.
        length: number of elements.
        start, stop: the words of the copy that hold it.
    """

    dtype: str
    length: int
    start: int
    stop: int


@dataclass(frozen=True)
class Buffers:
    """Flat buffers of numbers, and of signs, in an array of words.

    Attributes:
        segments: the buffers, in order.
        dtype: of a matrix that holds the numbers of all of them.
    """

    segments: tuple[Segment, ...]
    dtype: str

    @property
    def words(self) -> int:
        """Return the length of the array in words."""
        return self.segments[-1].stop if self.segments else 0

    @cached_property
    def numbers(self) -> "Buffers":
        """Return the buffers of numbers alone, in the same words."""
        return Buffers(tuple(s for s in self.segments if s.dtype != SIGN), self.dtype)

    @property
    def signs(self) -> tuple[Segment, ...]:
        """Return the buffers of signs."""
        return tuple(segment for segment in self.segments if segment.dtype == SIGN)

    def typed(self, words: Any) -> list[Any]:
        """View words as the buffers: `(w,) -> [(length,), ...]`, one for each segment.

        Signs remain words.
        """
        return [
            _view(words[segment.start : segment.stop], segment.dtype)[: segment.length]
            for segment in self.segments
        ]

    def cut(self, start: int, stop: int) -> "Buffers":
        """Return the buffers in a slice of the words."""
        segments = []
        for segment in self.segments:
            first, last = max(segment.start, start), min(segment.stop, stop)
            if first < last:
                per_word = _per_word(segment.dtype)
                before = (first - segment.start) * per_word
                length = min(segment.length - before, (last - first) * per_word)
                segments.append(Segment(segment.dtype, length, first - start, last - start))
        return Buffers(tuple(segments), self.dtype)


@dataclass(frozen=True)
class Layout:
    """The parameters of a copy: flat buffers, one per dtype, one after another.

    A copy is a flat array of 64-bit words of any array kind: every collective carries words, and
    a vote compares words, so that the dtypes of the model do not matter on the way.

    Attributes:
        parameters: (name, shape, dtype) of every parameter, in the order in which they lie. All
            ranks have the same, but for the path in the name: see `without_path`.
    """

    parameters: tuple[tuple[str, tuple[int, ...], str], ...]

    def __post_init__(self) -> None:
        for name, _, dtype in self.parameters:
            if dtype not in _DTYPES and dtype != SIGN:
                raise ValueError(f"{name} is {dtype}, but must be one of {', '.join(_DTYPES)}")

    @cached_property
    def buffers(self) -> Buffers:
        """Return the flat buffers; each begins at a whole word."""
        lengths: dict[str, int] = {}
        for _, shape, dtype in self.parameters:
            lengths[dtype] = lengths.get(dtype, 0) + int(np.prod(shape, dtype=np.int64))
        segments, start = [], 0
        for dtype, length in lengths.items():
            stop = start - (-length // _per_word(dtype))
            segments.append(Segment(dtype, length, start, stop))
            start = stop
        if len(lengths) == 1:
            return Buffers(tuple(segments), next(iter(lengths)))
        return Buffers(tuple(segments), "float64" if "float64" in lengths else "float32")

    @cached_property
    def places(self) -> tuple[tuple[int, int, int], ...]:
        """Return (segment, start, stop) of every parameter's elements."""
        index = {segment.dtype: i for i, segment in enumerate(self.buffers.segments)}
        filled = [0] * len(index)
        places = []
        for _, shape, dtype in self.parameters:
            segment = index[dtype]
            start = filled[segment]
            filled[segment] += int(np.prod(shape, dtype=np.int64))
            places.append((segment, start, filled[segment]))
        return tuple(places)

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Return the words, `(start, stop)`, that hold elements of every parameter."""
        spans = []
        for segment, start, stop in self.places:
            per_word = _per_word(self.buffers.segments[segment].dtype)
            first = self.buffers.segments[segment].start
            spans.append((first + start // per_word, first - (-stop // per_word)))
        return tuple(spans)

    @cached_property
    def signs(self) -> "Layout":
        """Return the layout of the signs of all elements, in the order in which a copy holds them.

        After them comes one number: NaN when an element is not finite, which signs cannot tell.
        """
        if not self.parameters:
            return self
        order = sorted(range(len(self.parameters)), key=lambda i: self.places[i])
        signs = tuple((*self.parameters[i][:2], SIGN) for i in order)
        return Layout((*signs, ("whether all are finite", (1,), "float64")))

    @property
    def words(self) -> int:
        """Return the length of a copy in words."""
        return self.buffers.words

    def typed(self, words: Any) -> list[Any]:
        """View a copy as its flat buffers: `(w,) -> [(length,), ...]`, one for each dtype."""
        return self.buffers.typed(words)

    @cached_property
    def digest(self) -> tuple[int, int]:
        """Return two words that differ between layouts, whatever paths their names have."""
        return digest_of_text(json.dumps([_identity(entry) for entry in self.parameters]))

    def pack(self, buffers: Sequence[np.ndarray]) -> np.ndarray:
        """Join flat buffers into a copy: `[(length,), ...] -> (w,)` words."""
        words = np.zeros(self.words, dtype=np.int64)
        for target, buffer in zip(self.typed(words), buffers, strict=True):
            target[:] = buffer
        return words


def digest_of_text(text: str) -> tuple[int, int]:
    """Return two words that differ between texts."""
    digest = hashlib.sha256(text.encode()).digest()
    first, second = np.frombuffer(digest[: 2 * WORD], dtype=np.int64).tolist()
    return first, second


def _per_word(dtype: str) -> int:
    """Return how many elements of a dtype a word holds."""
    return 8 * WORD if dtype == SIGN else WORD // _DTYPES[dtype].itemsize


def _view(words: Any, dtype: str) -> Any:
    """Reinterpret words as elements of a dtype, without a copy; signs remain words."""
    if dtype == SIGN:
        return words
    if isinstance(words, np.ndarray):
        return words.view(_DTYPES[dtype])
    return words.view(getattr(sys.modules["torch"], dtype))


def without_path(name: str) -> str:
    """Return what of a parameter's name all ranks agree on.

    Keras makes paths from what else a rank has built or loaded; they serve messages.

    >>> without_path("3 sequential_1/embedding/table (rows)")
    '3 table (rows)'
    """
    return re.sub(r"[^ ]*/", "", name)


def _identity(entry: Sequence[Any]) -> list[Any]:
    """Return what makes a parameter the same as another rank's, given its name and the rest."""
    return [without_path(entry[0]), *entry[1:]]


def difference(layouts: Sequence[Sequence[Any]]) -> str:
    """Say in words where the parameter lists of the ranks differ; nothing if they do not.

    >>> difference([[["w", [2], "float32"]], [["w", [3], "float32"]]])
    'rank 0 has w [2] float32 where rank 1 has w [3] float32'
    >>> difference([[["0 dense/kernel", [2]]], [["0 sequential/dense/kernel", [2]]]])
    ''
    """
    for position in range(max(map(len, layouts))):
        entries = [
            layout[position] if position < len(layout) else ["no parameter"] for layout in layouts
        ]
        for rank, entry in enumerate(entries):
            if _identity(entry) != _identity(entries[0]):
                first, other = (" ".join(map(str, each)) for each in (entries[0], entry))
                return f"rank 0 has {first} where rank {rank} has {other}"
    return ""
