"""Attacks: definitions against independent formulas, placements, seeds, and the drill over time."""

import dataclasses
import math
import subprocess
import sys
import warnings

import ml_dtypes
import numpy as np
import pytest

from horovod_detox.attacks import (
    ATTACKS,
    ALittleIsEnough,
    Bias,
    BitFlip,
    Constant,
    FaultyRank,
    Gaussian,
    InnerProduct,
    LabelFlip,
    Mimic,
    NaN,
    Noise,
    OptimalInnerProduct,
    Reverse,
    Stale,
    Stride,
    Zero,
    ZeroBlock,
    by_name,
    from_spec,
)
from horovod_detox.vote.groups import Groups
from tests.attacks.scenes import (
    ELSEWHERE,
    REQUIRED,
    D,
    build,
    every_attack,
    every_dtype,
    gradients,
    hamming,
    honest_of,
    scene_of,
    uniform_groups,
)


@every_attack
@every_dtype
def test_copy_differs_from_the_gradient_which_is_never_written(name, dtype):
    scene = scene_of(dtype)
    own, honest = scene.own.copy(), honest_of(scene).copy()
    scene.own.flags.writeable = honest_of(scene).flags.writeable = False
    attack = build(name)
    copy = attack.corrupt(scene)
    assert copy.dtype == dtype
    assert copy.shape == own.shape
    assert hamming(scene.own, own) == 0
    assert hamming(honest_of(scene), honest) == 0
    if name in ELSEWHERE:
        assert hamming(copy, own) == 0
    else:
        assert hamming(copy, own) > 0
        assert not np.shares_memory(copy, scene.own)
        assert not np.shares_memory(copy, honest_of(scene))


@every_attack
@every_dtype
def test_same_scene_gives_the_same_bits(name, dtype):
    attack = build(name)
    first, second = attack.corrupt(scene_of(dtype)), attack.corrupt(scene_of(dtype))
    assert hamming(first, second) == 0


@every_attack
@every_dtype
def test_overflow_does_not_warn(name, dtype):
    big = np.full(D, ml_dtypes.finfo(dtype).max, dtype)
    big[::2] *= np.array(-1, dtype)
    scene = scene_of(dtype, own=big, honest=np.stack([big, -big, big]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(name).corrupt(scene)


@every_attack
def test_one_element_and_no_element(name):
    everyone = np.arange(1, 10, dtype=np.float32).reshape(9, 1)
    liar = FaultyRank(build(name, ranks=(1,)), 1, uniform_groups(3, 3))
    for size in (1, 0):
        own = everyone[1, :size]
        sent = liar.corrupt(1, own, everyone[:, :size], aggregate=lambda copies: copies[1])
        assert sent.shape == (size,)


@every_attack
def test_colluders_of_a_group_agree_and_independent_faults_differ(name):
    attack = build(name, ranks=(0, 1, 2, 3))
    groups = Groups(((0, 1), (2, 3), (4, 5), (6, 7), (8, 9)))
    everyone = gradients(5, D).repeat(2, axis=0)

    def sent(rank):
        liar = FaultyRank(attack, rank, groups)
        own = everyone[rank].copy()
        liar.corrupt(6, gradients(D, seed=9), everyone, lambda copies: copies.mean(axis=0))
        return liar.corrupt(7, own, everyone, lambda copies: copies.mean(axis=0))

    if attack.colluding:
        assert hamming(sent(0), sent(1)) == 0
        assert hamming(sent(2), sent(3)) == 0
    elif name not in {"bias", *ELSEWHERE}:
        assert hamming(sent(0), sent(1)) > 0
    assert hamming(sent(0), sent(0)) == 0


@pytest.mark.parametrize("name", ["gaussian", "noise", "random", "bit_flip", "ulp", "zero_block"])
def test_randomness_depends_on_seed_step_and_party(name):
    groups = uniform_groups(3, 3)
    own = gradients(D)

    def sent(seed=0, step=5, rank=0):
        return FaultyRank(by_name(name, seed=seed, ranks=(0, 1)), rank, groups).corrupt(step, own)

    assert hamming(sent(), sent()) == 0
    for other in (sent(seed=1), sent(step=6), sent(rank=1)):
        assert hamming(sent(), other) > 0


def test_table_names_are_the_class_names():
    for name, attack in ATTACKS.items():
        assert name.replace("_", "") == attack.__name__.lower()
        assert dataclasses.is_dataclass(attack)


@pytest.mark.parametrize(
    ("attack", "parameters", "message"),
    [
        (Reverse, {"ranks": (-1, 2)}, "a negative rank"),
        (Reverse, {"ranks": (2, 1, 2)}, "a rank twice"),
        (Reverse, {"ranks": (1.5,)}, "ranks must be"),
        (Reverse, {"ranks": 3}, "ranks must be"),
        (Reverse, {"ranks": "spred:2"}, r"'spred:2' is not one of random:COUNT"),
        (Reverse, {"ranks": "spread"}, "'spread' is not one of"),
        (Reverse, {"ranks": "spread:-2"}, "'spread:-2' is not one of"),
        (Reverse, {"ranks": "spread:two"}, "'spread:two' is not one of"),
        (Reverse, {"ranks": "spread:²"}, "is not one of"),
        (Reverse, {"steps": (5, 5)}, "contain no step"),
        (Reverse, {"steps": (-2, 5)}, "contain no step"),
        (Reverse, {"steps": 5}, "steps must be"),
        (Reverse, {"steps": (1, 2, 3)}, "steps must be"),
        (Reverse, {"probability": 1.5}, "probability 1.5 is greater than 1"),
        (Reverse, {"probability": -0.1}, "probability -0.1 is less than 0"),
        (Reverse, {"probability": "often"}, "probability must be a number"),
        (Reverse, {"seed": -1}, "seed -1 is less than 0"),
        (Reverse, {"scale": 0}, "scale 0 is not greater than 0"),
        (Reverse, {"scale": math.nan}, "scale must be a number"),
        (Reverse, {"scale": "big"}, "scale must be a number, not 'big'"),
        (Constant, {"value": None}, "value must be a number"),
        (Gaussian, {"std": 0}, "std 0 is not greater than 0"),
        (Gaussian, {"mean": math.inf}, "mean must be a number"),
        (Noise, {"std": -1}, "std -1 is not greater than 0"),
        (Stale, {"lag": 0}, "lag 0 is less than 1"),
        (Stale, {"lag": 1.5}, "lag must be an integer"),
        (ALittleIsEnough, {"z": "one"}, "z must be a number"),
        (InnerProduct, {"epsilon": 0}, "epsilon 0 is not greater"),
        (Mimic, {"target": -1}, "target -1 is less than 0"),
        (OptimalInnerProduct, {"limit": 0}, "limit 0 is not greater"),
        (BitFlip, {"count": 0}, "count 0 is less than 1"),
        (BitFlip, {"bits": ()}, "bits must be"),
        (BitFlip, {"bits": (1, 1)}, "bits must be"),
        (BitFlip, {"bits": (-1,)}, "bits must be"),
        (ZeroBlock, {"bytes": 0}, "bytes 0 is less than 1"),
        (Stride, {"every": 0}, "every 0 is less than 1"),
        (Bias, {"relative": 0}, "relative must not be 0"),
        (LabelFlip, {"num_classes": 1}, "num_classes 1 is less than 2"),
    ],
)
def test_bad_parameters_are_refused_when_built(attack, parameters, message):
    with pytest.raises(ValueError, match=f"({attack.__name__}:|placement) .*{message}"):
        attack(**parameters)


@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("reverse(scale=100)@1,4", Reverse(100, ranks=(1, 4))),
        ("reverse@1", Reverse(ranks=(1,))),
        (" reverse ( scale = 2 ) @ 4, 1 ", Reverse(2, ranks=(1, 4))),
        ("bit_flip(count=3)@spread:2", BitFlip(3, ranks="spread:2")),
        ("nan@random:5", NaN(ranks="random:5")),
        ("a_little_is_enough@concentrated:2", ALittleIsEnough(ranks="concentrated:2")),
        (
            "noise(std=0.5, probability=0.1, seed=3)@0",
            Noise(0.5, ranks=(0,), probability=0.1, seed=3),
        ),
        ("zero(steps=(2, 5))@0", Zero(ranks=(0,), steps=(2, 5))),
    ],
)
def test_specs(text, attack):
    assert from_spec(text) == attack


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reverse(scale=100)", "names no ranks.*@1,4.*@spread:2"),
        ("reverse@", "names no ranks"),
        ("@1,4", "names no ranks"),
        ("reverse@one", "'one' is neither ranks such as 1,4 nor a placement"),
        ("reverse@1,,4", "is neither ranks"),
        ("reverse@1,1", "a rank twice"),
        ("reverse@spred:2", "is not one of random:COUNT"),
        ("revers@1", "reverse"),
        ("reverse(scal=3)@1", "scale"),
        ("reverse(scale=-3)@1", "not greater than 0"),
        ("label_flip@1", "num_classes"),
        ("flip_state@1", r"flip_state\(of=...\)"),
        ("flip_state(of=weights)@1", "'weights' is none of parameters, optimizer, buffers, random"),
        ("flip_state(of=3)@1", "of 3 is none of parameters"),
    ],
)
def test_bad_specs(text, message):
    with pytest.raises(ValueError, match=message):
        from_spec(text)


@every_attack
def test_every_attack_is_reachable_by_spec(name):
    arguments = ", ".join(f"{key}={value}" for key, value in REQUIRED.get(name, {}).items())
    attack = from_spec(f"{name}({arguments})@spread:2")
    assert type(attack) is ATTACKS[name]
    assert attack == build(name, ranks="spread:2")


def test_attacks_import_no_framework():
    code = (
        "import sys, horovod_detox.attacks; "
        "print({'torch', 'tensorflow', 'horovod', 'keras', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
