"""Text on the wire: JSON as int64 words, for set-up and error messages, never in a usual step."""

import json
from typing import Any

import numpy as np

from horovod_detox.exchange.collectives import Collectives, Handle


def share(collectives: Collectives, name: str, value: Any) -> list[Any]:
    """Gather a JSON value from every rank.

    >>> from horovod_detox.exchange.cluster import InProcessCluster
    >>> InProcessCluster(2).run(lambda rank: share(rank, "names", {"rank": rank.rank}))[1]
    [{'rank': 0}, {'rank': 1}]
    """
    return begin_to_share(collectives, name, value).wait()


def begin_to_share(collectives: Collectives, name: str, value: Any) -> Handle:
    """Let a JSON value be on its way; `wait()` of what is returned gives those of all ranks."""
    text = json.dumps(value).encode()
    words = np.frombuffer(text + b" " * (-len(text) % 8), dtype=np.int64)
    return _Shared(collectives.allgather(name, np.concatenate([[len(words)], words])))


class _Shared:
    """Values under way, each behind its length in words."""

    def __init__(self, gathered: Handle) -> None:
        self._gathered = gathered

    def is_done(self) -> bool:
        return self._gathered.is_done()

    def wait(self) -> list[Any]:
        words, values = self._gathered.wait(), []
        while len(words):
            stop = 1 + int(words[0])
            values.append(json.loads(words[1:stop].tobytes()))
            words = words[stop:]
        return values
