"""How copies and votes travel; to add an exchange, add a module and its line here."""

from horovod_detox.exchange import gathered, leaders, sharded, tolerant
from horovod_detox.exchange.step import Exchange

EXCHANGES: dict[str, Exchange] = {
    "sharded": sharded,
    "gathered": gathered,
    "leaders": leaders,
}
"""Those to choose from: `Detox(exchange=)`."""

ALL_EXCHANGES: dict[str, Exchange] = {
    **EXCHANGES,
    "tolerant": tolerant,  # not to be chosen: it follows from Detox(tolerance=)
}
