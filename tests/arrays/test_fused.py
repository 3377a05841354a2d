"""Chains of operations as one kernel: the same bits, or else one operation after the other."""

import logging

import pytest

from horovod_detox.arrays.networks import network

torch = pytest.importorskip("torch")

from horovod_detox.arrays import device_digests, device_kernels, fused  # noqa: E402
from horovod_detox.arrays.nh import BLOCK, Key  # noqa: E402

KEY = Key(b"a secret")


@pytest.fixture
def compiled(monkeypatch):
    """Fuse on the CPU, without a compiler for it; return what was compiled."""
    graphs = []

    def compile(graph, dynamic):
        assert dynamic
        graphs.append(graph)
        return graph

    monkeypatch.setattr(fused, "KIND", "cpu")
    monkeypatch.setattr(fused, "_chains", {})
    monkeypatch.setattr(torch, "compile", compile)
    return graphs


def every_kernel(rows):
    return [
        device_kernels.mean(rows),
        device_kernels.sign_majority(rows),
        device_kernels.trimmed_mean(rows, range(3, 4)),
        device_kernels.trimmed_mean(rows, range(2, 5)),
        device_kernels.trimmed_mean(rows, range(2, 5), 4),
        device_digests.digests(list(rows.view(torch.int64)), KEY),
    ]


def test_a_chain_has_the_bits_of_its_operations(compiled, monkeypatch):
    rows = torch.randn(7, 6 * BLOCK)
    chained = [every_kernel(rows), every_kernel(rows), every_kernel(rows[:, : 4 * BLOCK])]
    assert len(compiled) == 6  # once for each: the second and third call find them
    monkeypatch.setattr(fused, "KIND", "cuda")
    for found, width in zip(chained, (6, 6, 4), strict=True):
        for ours, plain in zip(found, every_kernel(rows[:, : width * BLOCK]), strict=True):
            assert torch.equal(ours, plain)


def test_a_chain_sorts_by_the_network(compiled):
    device_kernels.trimmed_mean(torch.randn(7, 10), range(3, 4))
    (graph,) = compiled
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert len(calls) == sum(low + high for *_, low, high in network(7, range(3, 4)))


@pytest.mark.parametrize("kind", ["raises", "raises later", "other bits"])
def test_what_cannot_be_fused_runs_operation_by_operation(kind, compiled, monkeypatch, caplog):
    calls = []

    def compile(graph, dynamic):
        def run(*tensors):
            calls.append(graph)
            if kind == "raises" or (kind == "raises later" and len(calls) > 1):
                raise RuntimeError("no Triton here\nand a long story")
            return [result + 1e-3 * (kind == "other bits") for result in graph(*tensors)]

        return run

    monkeypatch.setattr(torch, "compile", compile)
    rows = torch.randn(5, 100)
    for _ in range(3):
        assert torch.equal(device_kernels.trimmed_mean(rows, range(2, 3)), rows.median(0).values)
    assert len(calls) == 1 + (kind == "raises later")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    assert "device_kernels._middle(range(2, 3),)" in text
    assert ("changes bits" if kind == "other bits" else "no Triton here") in text
    assert "story" not in text


@pytest.mark.timeout(300)
def test_a_compiler_gives_the_same_bits(accelerator, monkeypatch):
    """On a GPU: after each first call, which computes both ways, the kernel alone."""
    if accelerator.device.type != "cuda":
        pytest.skip("the compiler for the CPU takes minutes; pytest --device cuda")
    monkeypatch.setattr(fused, "_chains", {})
    rows = torch.randn(7, 6 * BLOCK + 3)[:, 3:]
    slices = list(torch.randint(-(1 << 63), (1 << 63) - 1, (3, 5 * BLOCK + 8)))
    for width in (6 * BLOCK, 4 * BLOCK):
        plain = every_kernel(rows[:, :width].contiguous())
        placed = accelerator.place(rows[:, :width].contiguous())
        for _ in range(2):
            for ours, theirs in zip(every_kernel(placed), plain, strict=True):
                assert torch.equal(accelerator.values(ours), theirs)
        found = device_digests.digests([accelerator.place(words) for words in slices], KEY)
        assert torch.equal(accelerator.values(found), device_digests.digests(slices, KEY))
    chains = fused._chains
    assert chains
    assert all(chains.values())
