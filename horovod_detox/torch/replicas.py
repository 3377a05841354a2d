"""What a process of torch holds alike with other ranks, piece by piece, and what it was fed."""

import functools
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves
from torch.utils.data import dataloader

from horovod_detox.replicas.generators import read_numpy, read_python, write_numpy, write_python
from horovod_detox.replicas.pieces import BUFFERS, OPTIMIZER, PARAMETERS, RANDOM, Piece
from horovod_detox.replicas.replicas import digest_of_batch
from horovod_detox.vote.fingerprint import digest

MOST_BATCHES = 16
"""Of so many batches, the latest, the digest is taken when a rank is outvoted."""


def words_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits of a tensor as words, on its device; what is missing to a word is zeros.

    >>> words_of(torch.tensor([1, 0, 1], dtype=torch.int32)).tolist()
    [1, 1]
    """
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    octets = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if missing := -len(octets) % 8:
        octets = torch.cat([octets, octets.new_zeros(missing)])
    elif octets.data_ptr() % 8:
        octets = octets.clone()
    return octets.view(torch.int64)


def write_words(tensor: torch.Tensor, words: torch.Tensor) -> None:
    """Overwrite a tensor by what `words_of` returned, unseen by autograd."""
    target = tensor.data
    target = torch.view_as_real(target) if target.is_complex() else target
    octets = words.view(torch.uint8)[: target.numel() * target.element_size()]
    target.copy_(octets.view(target.dtype).view(target.shape))


def _piece(kind: str, name: str, tensor: torch.Tensor) -> Piece:
    return Piece(
        kind,
        name,
        functools.partial(words_of, tensor),
        functools.partial(write_words, tensor),
    )


def _of_numbers(kind: str, name: str, holder: dict[str, Any]) -> Piece | None:
    """Return the numbers in a dictionary as one piece; None: there are none."""
    keys = sorted(key for key, value in holder.items() if _is_numbers(value))
    if not keys:
        return None

    def read() -> torch.Tensor:
        return torch.tensor([_word(x) for key in keys for x in _numbers(holder[key])])

    def write(words: torch.Tensor) -> None:
        received = iter(words.tolist())
        for key in keys:
            value = holder[key]
            new = [_number(next(received), like=x) for x in _numbers(value)]
            holder[key] = type(value)(new) if isinstance(value, (tuple, list)) else new[0]

    return Piece(kind, f"{name} {', '.join(keys)}", read, write)


def _is_numbers(value: Any) -> bool:
    return all(
        isinstance(each, float) or (isinstance(each, int) and abs(each) < 1 << 63)
        for each in _numbers(value)
    )


def _word(number: Any) -> int:
    """Return the bits of a number as an integer of 64 bits."""
    return int(np.float64(number).view(np.int64)) if isinstance(number, float) else int(number)


def _number(word: int, like: Any) -> Any:
    return float(np.int64(word).view(np.float64)) if isinstance(like, float) else type(like)(word)


def _numbers(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (tuple, list)) else [value]


def of_optimizer(
    optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[Piece]:
    """Yield an optimizer's parameters, what it keeps of them, and the options of its groups."""
    for name, parameter in named:
        if _is_plain(parameter):
            yield _piece(PARAMETERS, name, parameter)
        kept = optimizer.state.get(parameter, {})
        for key, value in kept.items():
            if _is_plain(value):
                yield _piece(OPTIMIZER, f"{name}.{key}", value)
        if numbers := _of_numbers(OPTIMIZER, name, kept):
            yield numbers
    for i, group in enumerate(optimizer.param_groups):
        options = {key: value for key, value in group.items() if key != "params"}
        for key, value in options.items():
            if _is_plain(value):
                yield _piece(OPTIMIZER, f"group {i}.{key}", value)
        if numbers := _of_numbers(OPTIMIZER, f"group {i}", group):
            yield numbers


def _is_plain(value: Any) -> bool:
    return (
        torch.is_tensor(value)
        and value.layout is torch.strided
        and value.device.type != "meta"
        and value.numel() > 0
    )


class _Held:
    """A tensor that others own: it is not kept alive."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._storage = StorageWeakRef(tensor.untyped_storage())
        self.place = _place(tensor)
        self._shape, self._stride = tensor.shape, tensor.stride()
        self._offset = tensor.storage_offset()
        self._like = torch.empty(0, dtype=tensor.dtype, device=tensor.device)

    def tensor(self) -> torch.Tensor | None:
        """Return it; None: it is gone."""
        storage = torch.UntypedStorage._new_with_weak_ptr(self._storage.cdata)
        if storage is None:
            return None
        return torch.empty_like(self._like).set_(storage, self._offset, self._shape, self._stride)


def _place(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())


class Holdings:
    """What this process holds beside its optimizers, whoever made it.

    Attributes:
        trained: the wrapped optimizers.
        batches: what data loaders have handed out since the latest exchange.
    """

    def __init__(self) -> None:
        self.trained: WeakSet[torch.optim.Optimizer] = WeakSet()
        self.batches: deque[Any] = deque(maxlen=MOST_BATCHES)
        self._held: dict[str, _Held] = {}
        self._times: Counter[str] = Counter()
        self._number = itertools.count()
        self._guarded: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def hold(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Look after tensors that are the same on all ranks, as they were just broadcast."""
        places = self._places()
        for name, tensor in named:
            if not _is_plain(tensor) or _place(tensor) in places:
                continue
            self._times[name] += 1  # not what is still alive, which ranks may see differently
            times = f" ({self._times[name]})" if self._times[name] > 1 else ""
            self._held[name + times] = _Held(tensor)

    def guard(self, thing: Any) -> None:
        """Look after what the members of a group hold alike.

        Raises:
            TypeError: for what has no state that could be read and written.
        """
        if isinstance(thing, torch.nn.Module):
            self.hold(thing.state_dict().items())
        elif torch.is_tensor(thing):
            self.hold([("tensor", thing)])
        elif isinstance(thing, torch.optim.Optimizer) or _has_state(thing):
            self._guarded.setdefault(thing, next(self._number))
        else:
            raise TypeError(
                "hvd.guard takes modules, tensors, optimizers, and objects with state_dict() and "
                f"load_state_dict(), not {thing!r}"
            )

    def _of_guarded(self) -> Iterator[Piece]:
        """Yield what is kept by objects that the script has named."""
        for thing, number in self._guarded.items():
            name = f"{type(thing).__name__} {number}"
            if isinstance(thing, torch.optim.Optimizer):
                named = [(f"{i}", p) for i, p in enumerate(_parameters(thing))]
                for piece in of_optimizer(thing, named):
                    yield replace(piece, kind=BUFFERS, name=f"{name}.{piece.key}")
            else:
                state = thing.state_dict()
                if numbers := _of_numbers(BUFFERS, name, state):
                    write = functools.partial(_load, numbers.write, state, thing)
                    yield replace(numbers, write=write)

    def pieces(self) -> Iterator[Piece]:
        """Yield the tensors that no optimizer trains, and the states of random generators."""
        trained = {_place(p) for each in self.trained for p in _parameters(each)}
        for name, held in [*self._held.items()]:
            tensor = held.tensor()
            if tensor is None:
                del self._held[name]
            elif held.place not in trained:
                yield _piece(BUFFERS, name, tensor)
        yield from self._of_guarded()
        yield Piece(RANDOM, "Python", *_of_arrays(read_python, write_python))
        yield Piece(RANDOM, "NumPy", *_of_arrays(read_numpy, write_numpy))
        yield Piece(
            RANDOM,
            "torch",
            lambda: words_of(torch.get_rng_state()),
            lambda words: torch.set_rng_state(words.view(torch.uint8)),
        )
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            yield Piece(
                RANDOM,
                "CUDA",
                lambda: words_of(torch.cuda.get_rng_state()),
                lambda words: torch.cuda.set_rng_state(words.view(torch.uint8)),
            )

    def holds(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is in the place of one that is trained or looked after."""
        if not _is_plain(tensor):
            return False
        trained = {_place(p) for each in self.trained for p in _parameters(each)}
        return _place(tensor) in trained | self._places()

    def _places(self) -> set[tuple[int, int]]:
        """Return where what is held lies."""
        return {held.place for held in self._held.values() if held.tensor() is not None}

    def digest_of_batches(self) -> np.ndarray | None:
        """Return a digest of what data loaders have handed out; None: nothing."""
        if not self.batches:
            return None
        leaves = [leaf for batch in self.batches for leaf in tree_leaves(batch)]
        return digest_of_batch([_digest(leaf) for leaf in leaves])


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _has_state(thing: Any) -> bool:
    return callable(getattr(thing, "state_dict", None)) and hasattr(thing, "load_state_dict")


def _load(
    write: Callable[[torch.Tensor], None], state: dict[str, Any], thing: Any, words: torch.Tensor
) -> None:
    """Write numbers to a state, and that to its owner."""
    write(words)
    thing.load_state_dict(state)


def _of_arrays(
    read: Callable[[], np.ndarray], write: Callable[[np.ndarray], None]
) -> tuple[Callable[[], torch.Tensor], Callable[[torch.Tensor], None]]:
    return (lambda: torch.from_numpy(read())), (lambda words: write(words.numpy()))


def _digest(leaf: Any) -> np.ndarray:
    if torch.is_tensor(leaf) and _is_plain(leaf):
        return digest(words_of(leaf).cpu().numpy())
    text = leaf.tobytes() if isinstance(leaf, np.ndarray) else repr(leaf).encode()
    return digest(np.frombuffer(text, np.uint8))


def remember_batches(holdings: Holdings) -> None:
    """Have what every `DataLoader` hands out remembered until the next exchange."""
    iterator = dataloader._BaseDataLoaderIter
    if getattr(iterator.__next__, "remembers", False):
        return
    hand_out = iterator.__next__

    @functools.wraps(hand_out)
    def remember(self: Any) -> Any:
        batch = hand_out(self)
        holdings.batches.append(batch)
        return batch

    remember.remembers = True  # type: ignore[attr-defined]
    iterator.__next__ = remember  # type: ignore[method-assign]


def guard(*things: Any) -> None:
    """Compare and heal more things that the ranks of a group should hold alike, as the weights.

    Things that take part in a step without being trained are not found automatically: an
    exponential moving average of the weights, a learning-rate scheduler, the scale of a GradScaler.
    Of objects that are not modules, the numbers in their `state_dict()` are compared. All ranks
    call it, with the same things.

    Args:
        things: modules, tensors, optimizers, objects with `state_dict()` and `load_state_dict()`.

    Raises:
        TypeError: for anything else.
    """
    for thing in things:
        holdings.guard(thing)


holdings = Holdings()
"""Those of this process."""
