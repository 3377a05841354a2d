"""The column kernels: against definitions of a line or two, and those of torch against Numba's."""

import os
import subprocess
import sys
import threading
import time
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_detox.aggregators import by_name
from horovod_detox.arrays import compilation, host_kernels
from horovod_detox.arrays.blocks import for_blocks
from horovod_detox.arrays.networks import network
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.frontend.context import prepare_kernels
from tests.votes import bits, draw, few_examples

every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.mark.parametrize("n", range(1, 11))
def test_networks_sort_all_zeros_and_ones(n):
    """A comparator network that sorts every sequence of zeros and ones sorts everything."""
    inputs = np.array(list(product([0.0, 1.0], repeat=n))).T.copy()
    expected = np.sort(inputs, axis=0)
    for first in range(n):
        assert bits(host_kernels.trimmed_mean(inputs, range(first, first + 1))) == bits(
            expected[first]
        )
        for stop in range(first + 1, n + 1):
            wires = list(inputs.copy())
            for i, j, low, high in network(n, range(first, stop)):
                a, b = wires[i], wires[j]
                wires[i] = np.minimum(a, b) if low else a
                wires[j] = np.maximum(a, b) if high else b
            assert bits(np.stack(wires[first:stop])) == bits(expected[first:stop])


@given(n=st.integers(11, 50), seed=st.integers(0, 1000))
@few_examples
def test_networks_sort(n, seed):
    rows = np.random.default_rng(seed).integers(0, n, (n, 64)).astype(np.float32)
    expected = np.sort(rows, axis=0)
    for rank in (0, 1, n // 2, n - 1):
        assert bits(host_kernels.trimmed_mean(rows, range(rank, rank + 1))) == bits(expected[rank])


def test_the_median_needs_a_part_of_the_network():
    def operations(ranks):
        return sum(low + high for _, _, low, high in network(15, ranks))

    assert operations(range(7, 8)) < 0.75 * operations(range(15))


@every_dtype
@pytest.mark.parametrize("width", [1, 63, 64, 1000, 5001])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 15])
def test_kernels_agree_with_their_definitions(n, width, dtype):
    rows = draw(n, width, dtype=dtype)
    close = {"rtol": 0, "atol": 20 * np.finfo(dtype).eps * np.abs(rows).max()}
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(host_kernels.mean(rows), exact.mean(axis=0), **close)
    shares = np.linspace(-1, 1, n + 1).tolist()
    np.testing.assert_allclose(
        host_kernels.weighted_sum(rows, shares, rows[0] * 2),
        np.array(shares[:n]) @ exact + shares[n] * exact[0] * 2,
        **close,
    )
    assert host_kernels.sign_majority(rows).tolist() == np.sign(np.sign(rows).sum(axis=0)).tolist()
    ordered = np.sort(rows, axis=0)
    for first in range((n - 1) // 2 + 1):
        ranks = range(first, n - first)
        centre = host_kernels.trimmed_mean(rows, ranks)
        np.testing.assert_allclose(centre, ordered[first : n - first].mean(axis=0), **close)
        nearest = np.argsort(np.abs(ordered - centre), axis=0, kind="stable")
        for kept in range(1, n + 1):
            expected = np.take_along_axis(ordered, nearest[:kept], axis=0).mean(axis=0)
            np.testing.assert_allclose(
                host_kernels.trimmed_mean(rows, ranks, kept), expected, **close
            )
    for reference, centre in [(None, None), (rows[0] * 3, rows[-1])]:
        points = np.vstack([exact, np.zeros(width) if reference is None else reference])
        points -= exact.mean(axis=0) if centre is None else centre
        np.testing.assert_allclose(
            host_kernels.gram(rows, reference, centre), points @ points.T, rtol=1e-11, atol=1e-9
        )


@every_dtype
@pytest.mark.parametrize("n", [1, 2, 3, 7, 12])
def test_tensors_on_a_device_get_the_same_bits(n, dtype, accelerator):
    torch = pytest.importorskip("torch")
    from horovod_detox.arrays import device_kernels

    rows = draw(n, 1000, dtype=dtype)
    rows[:, :50] = np.round(rows[:, :50])
    with accelerator.entered():
        tensors = accelerator.place(torch.from_numpy(rows.copy()))

    def on_device(name, *args, **kwargs):
        with accelerator.entered():
            kwargs = {key: accelerator.place(torch.from_numpy(v)) for key, v in kwargs.items()}
            return getattr(device_kernels, name)(tensors, *args, **kwargs)

    def check(name, *args, **kwargs):
        ours = getattr(host_kernels, name)(rows, *args, **kwargs)
        theirs = accelerator.values(on_device(name, *args, **kwargs)).numpy()
        assert bits(theirs + 0) == bits(ours + 0), (name, args)

    check("mean")
    check("sign_majority")
    check("weighted_sum", np.linspace(-1, 1, n).tolist())
    check("weighted_sum", np.linspace(-1, 1, n + 1).tolist(), previous=rows[0] * 2)
    for first in range((n - 1) // 2 + 1):
        check("trimmed_mean", range(first, n - first))
        check("trimmed_mean", range(first, n - first), max(1, n - 2 * first - 1))
    assert bits(accelerator.values(tensors).numpy()) == bits(rows)
    np.testing.assert_allclose(
        on_device("gram", reference=rows[0] * 3, centre=rows[0]),
        host_kernels.gram(rows, rows[0] * 3, rows[0]),
        rtol=1e-11,
        atol=1e-9,
    )


@pytest.mark.parametrize("rule", ["mean", "median", "meamed", "bulyan", "geometric_median"])
def test_threads_change_no_bit(rule, monkeypatch):
    votes = draw(7, 400_001)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(host_kernels, "thread_budget", lambda threads=threads: threads)
        results.append(bits(by_name(rule)(votes)))
    assert len(set(results)) == 1


def test_blocks_are_worked_on_at_the_same_time():
    both = threading.Barrier(2, timeout=20)
    two: Any = SimpleNamespace(threads=2)
    assert sorted(for_blocks(lambda columns: both.wait(), 20, 10, two)) == [0, 1]


def test_the_thread_budget_is_shared_by_the_ranks_of_a_host(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch = SimpleNamespace(get_num_threads=lambda: 16)
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert host_kernels.thread_budget() == 16
    monkeypatch.setenv("HOROVOD_LOCAL_SIZE", "4")
    assert host_kernels.thread_budget() == 4
    monkeypatch.setenv("HOROVOD_LOCAL_SIZE", "40")
    assert host_kernels.thread_budget() == 1
    monkeypatch.setenv("HOROVOD_LOCAL_SIZE", "1")
    torch.get_num_threads = lambda: 3
    assert host_kernels.thread_budget() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert host_kernels.thread_budget() == 2


def test_rows_that_kernels_would_misread_are_refused():
    rows = draw(3, 100)
    for wrong in (
        rows[:, ::2],
        [rows[0], rows[1].astype(np.float64), rows[2]],
        [rows[0], rows[1], rows[2][:50]],
    ):
        with pytest.raises(ValueError, match="contiguous, of one length and one element type"):
            host_kernels.mean(wrong)
    assert by_name("median")(rows[:1].T).tolist() == [np.median(rows[0])]  # strides of one column
    assert bits(by_name("median")(np.asfortranarray(rows))) == bits(by_name("median")(rows))


def test_compilation_is_announced_and_happens_once(tmp_path):
    """The compiled code is kept on disk: a second process says nothing and compiles nothing."""
    code = (
        "from horovod_detox.arrays import compilation, host_kernels; compilation.prepare();"
        "print(sum(host_kernels._trimmed_mean.stats.cache_misses.values()))"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def run():
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        return result.stdout.strip(), result.stderr.strip()

    assert run() == ("2", "compiling the aggregation rules with numba, once on this machine")
    assert run() == ("0", "")


def test_one_rank_compiles_for_hosts_that_share_a_folder_and_one_of_each_for_others(monkeypatch):
    """With two ranks on each of three hosts, who is ready before whom."""
    ready: list[int] = []
    mine = threading.local()

    def prepare():
        time.sleep(0.02)  # the others would overtake who does not wait
        ready.append(mine.rank)

    def program(collectives):
        mine.rank = collectives.rank
        prepare_kernels(collectives, is_first_of_host=collectives.rank % 2 == 0)

    monkeypatch.setattr(compilation, "prepare", prepare)
    InProcessCluster(6).run(program)
    assert ready[0] == 0
    assert sorted(ready[1:4]) == [0, 2, 4]
    assert sorted(ready[4:]) == list(range(6))
