"""How copies and votes travel; to add an exchange, add a module and its line here."""

from horovod_detox.exchange import gathered, leaders, sharded
from horovod_detox.exchange.outcome import Exchange

EXCHANGES: dict[str, Exchange] = {
    "sharded": sharded.exchange,
    "gathered": gathered.exchange,
    "leaders": leaders.exchange,
}
