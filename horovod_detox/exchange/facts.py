"""Text on the wire: JSON as int64 words, for set-up and error messages, never in a step."""

import json
from typing import Any

import numpy as np

from horovod_detox.exchange.collectives import Collectives


def share(collectives: Collectives, name: str, value: Any) -> list[Any]:
    """Gather a JSON value from every rank.

    >>> from horovod_detox.exchange.collectives import InProcessCluster
    >>> InProcessCluster(2).run(lambda rank: share(rank, "names", {"rank": rank.rank}))[1]
    [{'rank': 0}, {'rank': 1}]
    """
    text = json.dumps(value).encode()
    words = np.frombuffer(text + b" " * (-len(text) % 8), dtype=np.int64)
    lengths = collectives.allgather(f"{name}.lengths", np.array([len(words)])).wait()
    gathered = collectives.allgather(name, words).wait()
    return [json.loads(part.tobytes()) for part in np.split(gathered, np.cumsum(lengths)[:-1])]
