"""What a process of torch saves: noted, as it may hold a wrong state."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from horovod_detox.replicas.files import Files
from horovod_detox.torch.replicas import holdings

files = Files()
"""Those of this process."""


def note_saves() -> None:
    """Have `torch.save` note the files that it writes."""
    if getattr(torch.save, "notes", False):
        return
    save = torch.save

    @functools.wraps(save)
    def save_and_note(obj: object, f: Any, *args: Any, **more: Any) -> None:
        save(obj, f, *args, **more)
        files.note(f, any(map(holdings.holds, _tensors(obj))))

    save_and_note.notes = True  # type: ignore[attr-defined]
    torch.save = save_and_note  # type: ignore[assignment]


def _tensors(saved: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in containers, and those of modules among them."""
    for leaf in tree_leaves(saved):
        if torch.is_tensor(leaf):
            yield leaf
        elif isinstance(leaf, torch.nn.Module):
            yield from leaf.state_dict().values()
