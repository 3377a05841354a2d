"""Robust aggregation rules: callables that reduce n votes `(n, d)` to one vector `(d,)`.

To add a rule, write it in the file of its family and name it in one of the two tables below.
"""

from typing import Any

from horovod_detox.aggregators.aggregator import Aggregator, TooFewVotes
from horovod_detox.aggregators.chain import Chain
from horovod_detox.aggregators.clipping import AdaptiveClipping, CenteredClipping, Clipping
from horovod_detox.aggregators.coordinate import (
    MeaMed,
    Mean,
    Median,
    Phocas,
    SignMajority,
    TrimmedMean,
)
from horovod_detox.aggregators.geometric import GeometricMedian
from horovod_detox.aggregators.gram import gram_matrix
from horovod_detox.aggregators.hierarchy import Hierarchy
from horovod_detox.aggregators.krum import Bulyan, Krum, MultiKrum
from horovod_detox.aggregators.mixing import Bucketing, NearestNeighborMixing, PreAggregator
from horovod_detox.aggregators.spectral import CAF, SMEA
from horovod_detox.aggregators.subsets import CGE, FABA, MDA
from horovod_detox.arrays.blocks import finite_rows
from horovod_detox.registry import build, parse, split

AGGREGATORS: dict[str, type[Aggregator]] = {
    "mean": Mean,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "geometric_median": GeometricMedian,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "bulyan": Bulyan,
    "meamed": MeaMed,
    "phocas": Phocas,
    "mda": MDA,
    "centered_clipping": CenteredClipping,
    "caf": CAF,
    "smea": SMEA,
    "faba": FABA,
    "cge": CGE,
    "sign_majority": SignMajority,
}

PRE_AGGREGATORS: dict[str, type[PreAggregator]] = {
    "bucketing": Bucketing,
    "nearest_neighbor_mixing": NearestNeighborMixing,
    "clipping": Clipping,
    "adaptive_clipping": AdaptiveClipping,
}

__all__ = [
    "AGGREGATORS",
    "CAF",
    "CGE",
    "FABA",
    "MDA",
    "PRE_AGGREGATORS",
    "SMEA",
    "AdaptiveClipping",
    "Aggregator",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "Chain",
    "Clipping",
    "GeometricMedian",
    "Hierarchy",
    "Krum",
    "MeaMed",
    "Mean",
    "Median",
    "MultiKrum",
    "NearestNeighborMixing",
    "Phocas",
    "PreAggregator",
    "SignMajority",
    "TooFewVotes",
    "TrimmedMean",
    "by_name",
    "finite_rows",
    "gram_matrix",
]


def by_name(text: str, **parameters: Any) -> Aggregator:
    """Build a rule of `AGGREGATORS`, behind any number of `PRE_AGGREGATORS` joined by `+`.

    The parameters are those of the rule, which is the last part.

    Raises:
        ValueError: when a name or a parameter is unknown, or a parameter out of bounds.

    >>> by_name("multi_krum", f=2)
    MultiKrum(f=2, m=None)
    >>> by_name("bucketing(s=2)+trimmed_mean(f=1)")
    Chain(pre=Bucketing(s=2, seed=0), rule=TrimmedMean(f=1))
    """
    *stages, last = split(text, "+")
    if parse(last)[0] in PRE_AGGREGATORS:
        raise ValueError(f"{last} is a pre-aggregator: put a rule after it, as in {last}+median")
    rule: Aggregator = build(AGGREGATORS, last, **parameters)
    for stage in reversed(stages):
        rule = Chain(build(PRE_AGGREGATORS, stage, kind="pre-aggregator"), rule)
    return rule
