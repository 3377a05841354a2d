"""The way of one gradient is the one that CONTRIBUTING.md tells."""

import ast
import gc
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import horovod_detox
from horovod_detox import Detox
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.frontend.context import Engines
from tests.test_imports import imports, modules

torch: Any = pytest.importorskip("torch")
pytest.importorskip("horovod.torch")

from horovod_detox.packing.torch import Uncompressed  # noqa: E402
from horovod_detox.torch.gradients import GradientExchange  # noqa: E402

PACKAGE = Path(horovod_detox.__path__[0])
PAGE = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
TRANSPORT = {"torch/collectives.py": "exchange/cluster.py"}  # threads in the place of Horovod
ASIDES = {
    "config.py",  # which is asked for a setting
    "process.py",  # which is asked how many ranks share the cores
    "exchange/waits.py",  # which is told what this rank waits in, as are those that follow
    "exchange/pace.py",
    "exchange/presence.py",  # which is told which engine exchanges
    "vote/lateness.py",
    "frontend/engines.py",  # which is asked for the name of an engine
}
Call = tuple[str, str]


def told() -> list[str]:
    """Return the files that the page names, in its order."""
    section = PAGE.partition("## The way of one gradient")[2].partition("A call goes back up")[0]
    names: list[str] = re.findall(r"`([a-z_/]+\.py)`", section)
    return [TRANSPORT.get(name, name) for name in dict.fromkeys(names)]


def calls(frame: Any) -> Iterator[str]:
    """Yield the files of the package among a frame and its callers."""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE):
            yield str(file.relative_to(PACKAGE))
        frame = frame.f_back


def trace() -> list[Call]:
    """Return (caller, callee) of every call into a file of the package in one backward pass."""
    plan = Detox(one_round_bytes=0, overlap_bytes=4000).plan(6)
    seen: list[Call] = []

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call" and Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
            callee, *callers = calls(frame)
            seen.append((callers[0] if callers else "", callee))

    def program(collectives):
        model = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.Linear(40, 1))
        rng = np.random.default_rng(plan.groups.of(collectives.rank))
        for weight in model.parameters():
            weight.data = torch.tensor(rng.normal(size=tuple(weight.shape)), dtype=torch.float32)
        engines = Engines(plan, lambda name: collectives, None, None)
        named = list(model.named_parameters())[::-1]
        exchange: Any = GradientExchange(
            engines, lambda: named, Uncompressed, passes=1, factor=1, ranks=range(4)
        )
        loss = model(torch.ones(8, 40)).square().sum()
        if collectives.rank == 3:
            exchange._overlap._driver.submit(lambda: sys.setprofile(note))  # that thread, too
            sys.setprofile(note)
        loss.backward()
        sys.setprofile(None)

    gc.collect()
    gc.disable()  # it would close the threads of other tests in the midst of this
    try:
        InProcessCluster(6).run(program)
    finally:
        gc.enable()
    return seen


@pytest.fixture(scope="module")
def traced() -> Iterator[list[Call]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("horovod_detox.exchange.cut.BLOCK", 1)
        yield trace()


def test_a_step_goes_through_the_files_that_are_told(traced):
    gone = {callee for _, callee in traced} - ASIDES
    assert gone == {*told()}


def test_the_files_are_told_in_the_order_of_the_way(traced):
    order = [name for name in dict.fromkeys(callee for _, callee in traced) if name in told()]
    chapters = ["torch/gradients.py", "packing/torch.py", "exchange/part.py", "vote/majority.py"]
    chapters += ["exchange/owners.py", "aggregators/coordinate.py", "vote/ledger.py"]
    assert [name for name in order if name in chapters] == chapters
    assert [name for name in told() if name in chapters] == chapters


def test_only_what_was_handed_down_is_called_back_up(traced):
    """Up is against the direction of imports."""
    module_of = {str(path.relative_to(PACKAGE)): name for name, path in modules().items()}
    graph = {name: imports(name) for name in modules()}

    def below(name: str) -> set[str]:
        found, to_do = set(), [name]
        while to_do:
            new = graph[to_do.pop()] - found
            found |= new
            to_do += new
        return found

    up = {
        (caller, callee)
        for caller, callee in traced
        if caller
        and callee not in ASIDES
        and "exchange/cluster.py" not in (caller, callee)
        and module_of[caller] in below(module_of[callee])
        and module_of[callee] not in below(module_of[caller])
    }
    assert up == {
        ("arrays/blocks.py", "aggregators/aggregator.py"),
        ("aggregators/aggregator.py", "aggregators/coordinate.py"),
        ("engine.py", "frontend/overlap.py"),
        ("exchange/driver.py", "frontend/overlap.py"),
        ("exchange/sharded.py", "frontend/overlap.py"),
        ("torch/passes.py", "torch/gradients.py"),
    }


def test_every_file_that_is_told_is_there():
    for name in told():
        ast.parse((PACKAGE / name).read_text())
