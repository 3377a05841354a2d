"""The check of a first exchange where ranks were given other data than the rest of their group."""

import pytest

from horovod_detox.determinism.first_step import NotDeterministic
from tests.determinism.test_first_step import WAYS, copies_of, job, told

every_way = pytest.mark.parametrize("way", WAYS)


@every_way
def test_who_was_given_other_data_is_not_called_faulty(way, caplog):
    for _, report, _ in job(copies_of(6, wrong=[3]), WAYS[way], batches=[5, 6, 5, 7, 5, 6]):
        assert report.dissents == {3: 1}
    assert told(caplog) == [
        "first step: rank 3 was given other data than the others, and differs at tensor second: "
        "batch 07000000 against 06000000"
    ]


@every_way
def test_other_data_in_most_groups_are_refused(way):
    for error, *_ in job(copies_of(6, wrong=[1, 4]), WAYS[way], batches=[5, 7, 5, 6, 8, 6]):
        assert isinstance(error, NotDeterministic)
        text = "rank 1 differs: batch 07000000 against 06000000; rank 4 differs: batch 08000000"
        assert text in str(error)
        assert "batch    05000000  0, 2\n         07000000  1" in str(error)


@every_way
def test_other_data_that_change_no_bit_are_not_told(way, caplog):
    job(copies_of(6), WAYS[way], batches=range(6))
    assert told(caplog) == []
