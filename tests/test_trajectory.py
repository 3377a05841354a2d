"""The promise for every attack and every rule: liars change no bit and are named.

Nine ranks of the in-process cluster train a linear model, each group on data of its own.
"""

import os
from collections.abc import Callable
from itertools import cycle, product

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.aggregators import AGGREGATORS
from horovod_detox.attacks import ATTACKS, Attack, Reverse, by_name
from horovod_detox.drill import DrilledEngine
from horovod_detox.engine import Engine
from horovod_detox.exchange import EXCHANGES
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.packing.layout import Layout
from tests.attacks.scenes import ELSEWHERE

RANKS, STEPS, WIDTH = 9, 8, 6
LIARS = (1, 3, 8)  # one in each of the groups (0, 3, 6), (1, 4, 7), (2, 5, 8)
LAYOUT = Layout((("weights", (WIDTH,), "float32"),))
PARAMETERS = {"centered_clipping": "(radius=0.5)"}
PAIRS = [*product(sorted(AGGREGATORS), EXCHANGES)]
ATTACKS_ON_COPIES = sorted(ATTACKS.keys() - ELSEWHERE)
CASES = [(*pair, name) for pair, name in zip(PAIRS, cycle(ATTACKS_ON_COPIES), strict=False)]
"""Every rule in every exchange, under the attacks in turn; in `make soak` under every attack."""
if "SOAK" in os.environ:
    CASES = [(*pair, name) for pair, name in product(PAIRS, ATTACKS_ON_COPIES)]
Update = Callable[[np.ndarray], np.ndarray]


def sgd() -> Update:
    """Return SGD with momentum: gradient -> change of the weights."""
    velocity = np.zeros(WIDTH, np.float32)

    def update(gradient):
        velocity[:] = np.float32(0.9) * velocity + gradient
        return np.float32(-0.05) * velocity

    return update


def adam() -> Update:
    """Return Adam: gradient -> change of the weights."""
    first, second = np.zeros(WIDTH, np.float32), np.zeros(WIDTH, np.float32)

    def update(gradient):
        first[:] = np.float32(0.9) * first + np.float32(0.1) * gradient
        second[:] = np.float32(0.99) * second + np.float32(0.01) * gradient**2
        return np.float32(-0.01) * first / (np.sqrt(second) + np.float32(1e-8))

    return update


def gradient(weights: np.ndarray, step: int, group: int) -> np.ndarray:
    rng = np.random.default_rng([step, group])
    inputs = rng.normal(size=(12, WIDTH)).astype(np.float32)
    errors = inputs @ weights - inputs.sum(axis=1)
    return inputs.T @ errors / np.float32(12)


def train(
    outer: str,
    optimizer: Callable[[], Update],
    exchange: str,
    attack: Attack | None = None,
    momentum: float = 0.0,
):
    """Return every rank's weights after training, and its fault report."""
    outer += PARAMETERS.get(outer, "")
    detox = Detox(outer=outer, exchange=exchange, one_round_bytes=0, momentum=momentum)
    plan = detox.plan(RANKS)

    def program(collectives):
        engine = Engine(plan, collectives)
        drilled = DrilledEngine(engine, attack, collectives) if attack else engine
        weights, update = np.zeros(WIDTH, np.float32), optimizer()
        for step in range(STEPS):
            copy = LAYOUT.pack([gradient(weights, step, plan.groups.of(collectives.rank))])
            outcome = drilled.exchange(copy, LAYOUT)
            weights = weights + update(LAYOUT.typed(outcome.update)[0])
        return weights, engine.ledger.report()

    return InProcessCluster(RANKS, timeout=30).run(program)


def check_masked(
    outer: str, exchange: str, attack: Attack, optimizer: Callable[[], Update] = sgd
) -> None:
    expected = train(outer, optimizer, exchange)[0][0]
    for weights, report in train(outer, optimizer, exchange, attack):
        assert weights.tobytes() == expected.tobytes()
        # The first copy that a stale rank sends is fresh.
        assert report.dissents == dict.fromkeys(
            attack.ranks, STEPS - (type(attack).__name__ == "Stale")
        )


@pytest.mark.parametrize(("outer", "exchange", "name"), CASES)
def test_every_attack_is_masked_under_every_rule_in_every_exchange(outer, exchange, name):
    # Who mimics a member of its own group sends the truth.
    check_masked(outer, exchange, by_name(name, ranks=(1, 8) if name == "mimic" else LIARS))


def test_each_attack_meets_rules_of_every_kind_and_every_exchange():
    """The vote hides the rule from the attack, so that each pair need not be tried."""
    assert {(outer, exchange) for outer, exchange, _ in CASES} == {*PAIRS}
    for name in ATTACKS_ON_COPIES:
        assert len({exchange for _, exchange, attack in CASES if attack == name}) > 1, name


@pytest.mark.parametrize("outer", ["median", "multi_krum", "centered_clipping"])
def test_adam_is_masked(outer):
    """Columns, the Gram matrix, a centre."""
    check_masked(outer, "sharded", Reverse(ranks=LIARS), adam)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("outer", ["median", "centered_clipping"])
def test_attacks_are_masked_with_momentum(outer, exchange):
    fair = train(outer, sgd, exchange, momentum=0.9)[0][0]
    assert fair.tobytes() != train(outer, sgd, exchange)[0][0].tobytes()
    for weights, report in train(outer, sgd, exchange, Reverse(ranks=LIARS), momentum=0.9):
        assert weights.tobytes() == fair.tobytes()
        assert report.dissents == dict.fromkeys(LIARS, STEPS)


def test_without_the_vote_the_attack_changes_the_trajectory():
    """Show that the tests above can fail."""
    fair = train("mean", sgd, "sharded")
    lied = train("mean", sgd, "sharded", Reverse(ranks=(0, 1, 3, 4, 8)))
    assert fair[0][0].tobytes() != lied[0][0].tobytes()
