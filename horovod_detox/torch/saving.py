"""What a process of torch saves: noted, as it may hold a wrong state."""

import functools
from typing import Any

import torch

from horovod_detox.replicas.files import Files

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
        files.note(f)

    save_and_note.notes = True  # type: ignore[attr-defined]
    torch.save = save_and_note  # type: ignore[assignment]
