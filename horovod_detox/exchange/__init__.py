"""How copies and votes travel; to add an exchange, add a module and its line here."""

from horovod_detox.exchange import gathered, leaders, sharded, tolerant
from horovod_detox.exchange.outcome import Exchange

EXCHANGES: dict[str, Exchange] = {
    "sharded": sharded.exchange,
    "gathered": gathered.exchange,
    "leaders": leaders.exchange,
}

ALL_EXCHANGES: dict[str, Exchange] = {
    **EXCHANGES,
    "tolerant": tolerant.exchange,  # not to be chosen: it follows from Detox(tolerance=)
}
