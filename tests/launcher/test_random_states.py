"""Random states: alike inside a group."""

import random

import numpy as np
import pytest

from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.launcher.random_states import NUMPY, PYTHON, RandomState, align
from horovod_detox.vote.groups import Groups, group_seeds


def align_everywhere(states, groups, seed=None):
    """Align states, [rank][position]; return the new ones, and the names of those seeded."""
    states = [list(theirs) for theirs in states]

    def program(collectives):
        mine = states[collectives.rank]
        cells = [
            RandomState(name, lambda i=i: mine[i], lambda value, i=i: mine.__setitem__(i, value))
            for i, name in enumerate(("python", "NumPy", "PyTorch"))
        ]
        return align(cells, collectives, groups, seed)

    names = InProcessCluster(len(states)).run(program)
    assert all(theirs == names[0] for theirs in names)
    return states, names[0]


TWO_GROUPS = Groups(((0, 2), (1, 3)))


def test_members_that_agree_keep_their_states():
    states = [[1, 2, 3], [1, 9, 4], [1, 2, 3], [1, 9, 4]]
    assert align_everywhere(states, TWO_GROUPS) == (states, [])
    assert align_everywhere(states, TWO_GROUPS, seed=5) == (states, [])


def test_unseeded_members_are_seeded_as_by_seed_group():
    states = [[rank, rank + 10, rank + 20] for rank in range(4)]
    seeded, names = align_everywhere(states, TWO_GROUPS, seed=5)
    assert names == ["python", "NumPy", "PyTorch"]
    assert seeded[0] == seeded[2] == list(group_seeds(5, 0))
    assert seeded[1] == seeded[3] == list(group_seeds(5, 1))


def test_only_what_differs_inside_a_group_is_seeded_by_its_lowest_rank():
    states = [[1, 2, 3], [1, 2, 8], [1, 2, 3], [1, 2, 9]]
    seeded, names = align_everywhere(states, TWO_GROUPS)
    assert names == ["PyTorch"]
    assert seeded[0] == seeded[2] == [1, 2, 3]
    assert seeded[1] == seeded[3]
    assert seeded[1][:2] == [1, 2]
    again, _ = align_everywhere([[1, 2, 3], [1, 2, 8], [1, 2, 3], [1, 2, 7]], TWO_GROUPS)
    assert again == seeded  # whatever the other members had
    other, _ = align_everywhere([[1, 2, 3], [1, 2, 6], [1, 2, 3], [1, 2, 9]], TWO_GROUPS)
    assert other[1] != seeded[1]


@pytest.mark.parametrize(("state", "draw"), [(PYTHON, random.random), (NUMPY, np.random.rand)])
def test_states_of_this_process(state, draw):
    state.seed(1)
    before = state.digest()
    first = draw()
    assert state.digest() != before
    state.seed(1)
    assert state.digest() == before
    assert draw() == first
    state.seed(2)
    assert state.digest() != before


def test_the_state_of_torch():
    torch = pytest.importorskip("torch")
    pytest.importorskip("horovod.torch")
    from horovod_detox.torch.script import read_state

    torch.manual_seed(1)
    before = read_state()
    torch.rand(1)
    assert read_state() != before
    torch.manual_seed(1)
    assert read_state() == before


def test_the_state_of_tensorflow():
    tf = pytest.importorskip("tensorflow")
    pytest.importorskip("horovod.tensorflow")
    from horovod_detox.tensorflow.script import read_state, set_seed

    tf.random.set_seed(None)
    assert read_state() != read_state()  # unseeded states never agree
    PYTHON.seed(3)
    NUMPY.seed(3)
    others = PYTHON.digest(), NUMPY.digest()
    set_seed(1)
    before = read_state()
    drawn = tf.random.uniform([])
    assert read_state() != before
    set_seed(1)
    assert read_state() == before
    assert tf.random.uniform([]) == drawn
    assert (PYTHON.digest(), NUMPY.digest()) == others
    tf.random.set_seed(None)
