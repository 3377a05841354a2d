"""Whether ranks compute the same bits, and if not, whether a rank or a setting is to blame."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from horovod_detox.arrays.nh import WORDS
from horovod_detox.determinism.conditions import NOT_SET, Conditions, differing, table
from horovod_detox.packing.layout import difference
from horovod_detox.vote.groups import Groups
from horovod_detox.vote.majority import majority_vote

DETERMINISTIC = "deterministic"
NONDETERMINISTIC = "nondeterministic"
UNSTABLE = "unstable"
FAULTY = "faulty"
WEIGHTS = "weights"
MODELS = "models"

ADVICE = """\
- the same data and random state inside a group: GroupSampler or shard, and seed_group
- the same threads on every rank: OMP_NUM_THREADS, torch.set_num_threads, tf.config.threading
- the same libraries on every host, and kernels for what all processors have:
  ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2
- deterministic kernels: torch.use_deterministic_algorithms(True), on a GPU with
  CUBLAS_WORKSPACE_CONFIG=:4096:8, or tf.config.experimental.enable_op_determinism()
- machines that differ: Detox(placement="packed") where those of one kind fit a group, or
  Detox(tolerance=...), which allows for rounding"""
"""What makes honest ranks compute the same bits."""


@dataclass(frozen=True)
class Trial:
    """What one rank has to tell of a gradient that all ranks computed, twice.

    Attributes:
        conditions: of its process.
        weights: the digest of each weight before, by name, in the order of the model.
        gradients, repeated: the digest of each gradient, computed first and again.
    """

    conditions: Conditions
    weights: Mapping[str, str]
    gradients: Mapping[str, str]
    repeated: Mapping[str, str]


@dataclass(frozen=True)
class Oddity:
    """Ranks that differ from the others in what should be the same bits.

    Attributes:
        ranks: ascending.
        tensors: where they differ, in the order of the model.
        causes: conditions that may explain it, such as "torch threads 2 against 4"; empty: they
            have those of the others.
        among: the ranks that should hold the same bits, these and the others.
        outvoted: whether the others are a majority; else nobody can tell who is right.
    """

    ranks: tuple[int, ...]
    tensors: tuple[str, ...]
    causes: tuple[str, ...]
    among: tuple[int, ...]
    outvoted: bool = True

    def __str__(self) -> str:
        """Tell it in a few words."""
        alone = len(self.ranks) == 1
        if self.causes:
            return f"{_ranks(self.ranks)} differ{'s' * alone}: {', '.join(self.causes)}"
        if not self.outvoted:
            return f"{_ranks(self.among)} have no majority, with the same settings"
        what = "it alone differs" if alone else "they differ"
        where = _tensors(self.tensors)
        return f"{_ranks(self.ranks)} faulty at {where}: {what}, with the settings of the others"


@dataclass(frozen=True)
class PreflightReport:
    """What came of a comparison of ranks; the same on every rank.

    Attributes:
        verdict: `deterministic` (all ranks of a group computed the same bits), `nondeterministic`
            (conditions differ that explain why not, or there is no majority), `unstable` (ranks do
            not compute the same bits twice), `faulty` (ranks differ that have the conditions of the
            others), `weights` (they differed before anything was computed), `models` (so did their
            names).
        conditions: of every rank.
        oddities: the ranks that differ.
        tensors: where some rank differs, in the order of the model.
        difference: of the models, in words.
        ranks: what the ranks are called; None: as they are counted.
    """

    verdict: str
    conditions: tuple[Conditions, ...] = field(repr=False)
    oddities: tuple[Oddity, ...] = ()
    tensors: tuple[str, ...] = ()
    difference: str = ""
    ranks: tuple[int, ...] | None = None

    @property
    def is_deterministic(self) -> bool:
        """Return whether votes will accuse no honest rank."""
        return self.verdict == DETERMINISTIC

    def __str__(self) -> str:
        """Tell the verdict in one line."""
        return _WORDS[self.verdict](self)

    def table(self, everything: bool = False) -> str:
        """Return the conditions that differ, or all, as lines of text."""
        names = dict.fromkeys(name for each in self.conditions for name in each)
        return table(
            self.conditions, names if everything else differing(self.conditions), self.ranks
        )

    def to_json(self) -> str:
        """Serialise the report, with the verdict in words."""
        return json.dumps(asdict(self) | {"words": str(self)})


def judge_trials(trials: Sequence[Trial], groups: Groups | None = None) -> PreflightReport:
    """Tell from the trials of all ranks whether they compute the same bits.

    Args:
        trials: by rank.
        groups: whose members must; between groups they may differ. None: all ranks must.
    """
    conditions = tuple(trial.conditions for trial in trials)
    names = [[[name] for name in trial.weights] for trial in trials]
    if any(theirs != names[0] for theirs in names):
        return PreflightReport(MODELS, conditions, difference=difference(names))
    everybody = [tuple(range(len(trials)))]
    tensors, weights = _table([trial.weights for trial in trials])
    if odd := _odd_ones(everybody, tensors, weights, [{}] * len(trials)):
        return _report(WEIGHTS, conditions, odd, tensors)
    _, first = _table([trial.gradients for trial in trials])
    _, repeated = _table([trial.repeated for trial in trials])
    if unstable := _unstable(tensors, first, repeated, conditions):
        return _report(UNSTABLE, conditions, [unstable], tensors)
    odd = _odd_ones(everybody, tensors, first, conditions)
    teams = [ranks for ranks in groups.members if len(ranks) > 1] if groups else everybody
    is_fine = teams and not _odd_ones(teams, tensors, first, conditions)
    return _report(DETERMINISTIC if is_fine else _blame(odd), conditions, odd, tensors)


def judge_copies(
    groups: Groups,
    tensors: Sequence[str],
    fingerprints: np.ndarray,
    conditions: Sequence[Conditions],
    ranks: Sequence[int] | None = None,
) -> PreflightReport:
    """Tell from the copies of a step what sets members of a group apart.

    Args:
        groups: whose members should hold the same copy.
        tensors: the names of the parameters.
        fingerprints: `(p, parameters, 2)` of int64, row i of rank i.
        conditions: of every rank.
        ranks: what the ranks are called; None: as they are counted.
    """
    names = tuple(ranks or range(groups.world_size))
    odd = [
        replace(
            oddity,
            ranks=tuple(names[rank] for rank in oddity.ranks),
            among=tuple(names[rank] for rank in oddity.among),
        )
        for oddity in _odd_ones(groups.members, tensors, fingerprints, conditions)
    ]
    return _report(_blame(odd), conditions, odd, tensors, names)


def _report(
    verdict: str,
    conditions: Sequence[Conditions],
    oddities: Sequence[Oddity],
    tensors: Sequence[str],
    ranks: tuple[int, ...] | None = None,
) -> PreflightReport:
    differing = {name for oddity in oddities for name in oddity.tensors}
    where = tuple(name for name in tensors if name in differing)
    return PreflightReport(verdict, tuple(conditions), tuple(oddities), where, ranks=ranks)


def _blame(oddities: Sequence[Oddity]) -> str:
    """Return the verdict on ranks that differ."""
    if not oddities:
        return DETERMINISTIC
    are_faulty = all(oddity.outvoted and not oddity.causes for oddity in oddities)
    return FAULTY if are_faulty else NONDETERMINISTIC


def _odd_ones(
    teams: Sequence[Sequence[int]],
    tensors: Sequence[str],
    table: np.ndarray,
    conditions: Sequence[Conditions],
) -> tuple[Oddity, ...]:
    """Return who differs from most of its team: `(p, tensors, 2)` fingerprints of int64."""
    usual = [_usual(team, table) for team in teams]
    odd = {}  # (team, causes) -> rank -> where it differs
    for i, (team, (reference, agreeing)) in enumerate(zip(teams, usual, strict=True)):
        for rank in set(team) - set(agreeing):
            others = agreeing or tuple(other for other in team if other != rank)
            agreed = [ranks for _, ranks in usual]
            causes = _causes(rank, others, agreed, conditions)
            wrong = (table[rank] != reference).any(axis=-1)
            odd.setdefault((i, causes), {})[rank] = wrong
    return tuple(
        Oddity(
            tuple(sorted(where)),
            tuple(np.array(tensors)[np.any(list(where.values()), axis=0)].tolist()),
            causes,
            tuple(teams[i]),
            majority_vote(teams[i], table[list(teams[i])]).winners is not None,
        )
        for (i, causes), where in sorted(odd.items(), key=lambda item: min(item[1]))
    )


def _usual(team: Sequence[int], table: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the copy that won, or the one that most hold, and who holds it."""
    vote = majority_vote(team, table[list(team)])
    if vote.winners is not None:
        won = table[list(vote.winners), np.arange(table.shape[1])]
    else:
        copies = [table[rank].tobytes() for rank in team]
        won = table[team[max(range(len(team)), key=lambda i: (copies.count(copies[i]), -i))]]
    return won, tuple(rank for rank in team if np.array_equal(table[rank], won))


def _causes(
    rank: int,
    others: Sequence[int],
    agreed: Sequence[Sequence[int]],
    conditions: Sequence[Conditions],
) -> tuple[str, ...]:
    """Return the conditions by which a rank may differ from others.

    Args:
        agreed: ranks that hold the same bits; what differs among them changes none.
    """
    causes = []
    for name in differing(conditions, [rank, *others]):
        values = [each.get(name, NOT_SET) for each in conditions]
        theirs = {values[other] for other in others}
        harmless = any(
            values[rank] in (found := {values[r] for r in ranks}) and found & theirs
            for ranks in agreed
        )
        if values[rank] not in theirs and not harmless:
            causes.append(f"{name} {values[rank]} against {' or '.join(sorted(theirs))}")
    return tuple(causes)


def _unstable(
    tensors: Sequence[str],
    first: np.ndarray,
    repeated: np.ndarray,
    conditions: Sequence[Conditions],
) -> Oddity | None:
    """Return the ranks that did not compute the same bits twice; None: there are none."""
    changed = (first != repeated).any(axis=-1)  # (p, tensors)
    everybody = tuple(range(len(conditions)))
    ranks = tuple(np.flatnonzero(changed.any(axis=1)).tolist())
    if not ranks:
        return None
    stable = tuple(rank for rank in everybody if rank not in ranks)
    causes = {cause for rank in ranks for cause in _causes(rank, stable, [stable], conditions)}
    where = tuple(np.array(tensors)[changed.any(axis=0)].tolist())
    outvoted = 2 * len(stable) > len(everybody)
    return Oddity(ranks, where, tuple(sorted(causes)), everybody, outvoted)


def _table(digests: Sequence[Mapping[str, str]]) -> tuple[list[str], np.ndarray]:
    """Return the names of tensors and their fingerprints, `(p, tensors, 2)` of int64."""
    joined = bytes.fromhex("".join(digest for each in digests for digest in each.values()))
    words = np.frombuffer(joined, np.int64).reshape(len(digests), -1, WORDS)
    return list(digests[0]), words


def _deterministic(report: PreflightReport) -> str:
    if report.oddities:
        return f"deterministic inside each group; between groups {_joined(report)}"
    if len(report.conditions) == 1:
        return "deterministic: 1 rank computed the same bits twice"
    return f"deterministic: {len(report.conditions)} ranks computed the same bits"


def _nondeterministic(report: PreflightReport) -> str:
    return f"nondeterministic at {_tensors(report.tensors)}: {_joined(report)}"


def _instability(report: PreflightReport) -> str:
    (oddity,) = report.oddities
    alone = len(oddity.ranks) == 1
    whose = f"{_ranks(oddity.ranks)}'s own" if alone else f"of each of {_ranks(oddity.ranks)} the"
    words = f"nondeterministic at {_tensors(report.tensors)}: {whose} two computations differ"
    if oddity.causes:
        return f"{words}: {', '.join(oddity.causes)}"
    if oddity.outvoted:
        return f"{words}, those of the others with the same settings do not: probably a fault"
    return f"{words}: use deterministic kernels"


def _weights(report: PreflightReport) -> str:
    odd = sorted({rank for oddity in report.oddities for rank in oddity.ranks})
    words = (
        f"the weights differ before anything is computed at {_tensors(report.tensors)}: "
        f"{_ranks(odd)} from the others: broadcast them first (broadcast_parameters, "
        "broadcast_variables)"
    )
    if len(odd) == 1 and len(report.conditions) > 2:
        return f"{words}; if they were, {_ranks(odd)} is faulty"
    return words


_WORDS = {
    DETERMINISTIC: _deterministic,
    NONDETERMINISTIC: _nondeterministic,
    UNSTABLE: _instability,
    FAULTY: lambda report: _joined(report),
    WEIGHTS: _weights,
    MODELS: lambda report: f"the models differ: {report.difference}",
}


def _tensors(names: Sequence[str]) -> str:
    """Name the first tensor, and say how many there are."""
    more = len(names) - 1
    others = f" and {more} other{'s' * (more > 1)}" if more else ""
    return f"tensor {names[0]}{others}"


def _joined(report: PreflightReport) -> str:
    return "; ".join(dict.fromkeys(map(str, report.oddities)))


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
