"""Whether ranks compute the same bits, and if not, whether a rank or a setting is to blame."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from horovod_detox.arrays.nh import WORDS
from horovod_detox.determinism.conditions import NOT_SET, Conditions, differing, table
from horovod_detox.determinism.doubt import mean_nothing, of_one
from horovod_detox.determinism.oddity import Oddity, name_ranks, name_tensors
from horovod_detox.packing.layout import difference
from horovod_detox.vote.groups import Groups
from horovod_detox.vote.majority import Verdict, Vote, majority_vote

DETERMINISTIC = "deterministic"
NONDETERMINISTIC = "nondeterministic"
UNSTABLE = "unstable"
FAULTY = "faulty"
WEIGHTS = "weights"
MODELS = "models"

ADVICE = """\
- the same data and random state inside a group: hvd.GroupSampler or hvd.shard, and hvd.seed_group;
  under the launcher DistributedSampler or tf.data's shard; and no seed by rank, nor in a
  worker_init_fn
- no random numbers in what runs in parallel, as map(num_parallel_calls=) of tf.data or the workers
  of a PyDataset, and no deterministic=False
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
class PreflightReport:
    """What came of a comparison of ranks; the same on every rank.

    Attributes:
        verdict: `deterministic` (all ranks of a group computed the same bits), `nondeterministic`
            (most groups accuse honest ranks, as conditions differ, or have no majority), `unstable`
            (ranks do not compute the same bits twice), `faulty` (some ranks differ, or those of one
            host), `weights` (they differed before anything was computed), `models` (so did their
            names).
        conditions: of every rank.
        oddities: the ranks that differ.
        tensors: where some rank differs, in the order of the model.
        difference: of the models, in words.
        ranks: what the ranks are called; None: as they are counted.
        is_of_one: whether all that differ are one rank, or of one host, and are outvoted.
    """

    verdict: str
    conditions: tuple[Conditions, ...] = field(repr=False)
    oddities: tuple[Oddity, ...] = ()
    tensors: tuple[str, ...] = ()
    difference: str = ""
    ranks: tuple[int, ...] | None = None
    is_of_one: bool = False

    @property
    def is_deterministic(self) -> bool:
        """Return whether honest ranks compute the same bits, as far as the others can tell."""
        return self.verdict in (DETERMINISTIC, FAULTY) or self.is_of_one

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
    if differ := difference(names):
        return PreflightReport(MODELS, conditions, difference=differ)
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
    teams = teams or everybody
    in_teams = _odd_ones(teams, tensors, first, conditions)
    verdict = _blame(in_teams, teams, first, conditions)
    if _accused(in_teams) - _accused(odd):  # by ranks that are a majority only in their group
        verdict = NONDETERMINISTIC
    return _report(verdict, conditions, odd, tensors)


def judge_copies(
    groups: Groups,
    tensors: Sequence[str],
    fingerprints: np.ndarray,
    conditions: Sequence[Conditions],
    verdict: Verdict,
    ranks: Sequence[int] | None = None,
) -> PreflightReport:
    """Tell from the copies of a step what sets members of a group apart.

    Args:
        groups: whose members should hold the same copy.
        tensors: the names of the parameters.
        fingerprints: `(p, parameters, 2)` of int64, row i of rank i.
        conditions: of every rank.
        verdict: the votes; they are taken on slices, not on parameters. None of a step in which
            they are not known.
        ranks: what the ranks are called; None: as they are counted.
    """
    names = tuple(ranks or range(groups.world_size))
    found = _odd_ones(groups.members, tensors, fingerprints, conditions, verdict.votes)
    blame = _blame(found, groups.members, fingerprints, conditions)
    odd = [
        replace(
            oddity,
            ranks=tuple(names[rank] for rank in oddity.ranks),
            among=tuple(names[rank] for rank in oddity.among),
        )
        for oddity in found
    ]
    return _report(blame, conditions, odd, tensors, names)


def _report(
    verdict: str,
    conditions: Sequence[Conditions],
    oddities: Sequence[Oddity],
    tensors: Sequence[str],
    ranks: tuple[int, ...] | None = None,
) -> PreflightReport:
    differing = {name for oddity in oddities for name in oddity.tensors}
    where = tuple(name for name in tensors if name in differing)
    is_of_one = bool(oddities) and of_one(oddities, conditions)
    return PreflightReport(
        verdict, tuple(conditions), tuple(oddities), where, ranks=ranks, is_of_one=is_of_one
    )


def _blame(
    oddities: Sequence[Oddity],
    teams: Sequence[Sequence[int]],
    table: np.ndarray,
    conditions: Sequence[Conditions],
) -> str:
    """Return the verdict on ranks that differ."""
    if not oddities:
        return DETERMINISTIC
    return NONDETERMINISTIC if mean_nothing(oddities, teams, table, conditions) else FAULTY


def _accused(oddities: Sequence[Oddity]) -> set[int]:
    return {rank for oddity in oddities if oddity.outvoted for rank in oddity.ranks}


def _odd_ones(
    teams: Sequence[Sequence[int]],
    tensors: Sequence[str],
    table: np.ndarray,
    conditions: Sequence[Conditions],
    votes: Sequence[Vote] = (),
) -> tuple[Oddity, ...]:
    """Return who differs from most of its team: `(p, tensors, 2)` fingerprints of int64.

    Args:
        teams, tensors, table, conditions: as of `judge_copies`.
        votes: of the teams; empty: each is taken tensor by tensor.
    """
    votes = votes or [majority_vote(team, table[list(team)]) for team in teams]
    agreed = [_agreeing(team, vote, table) for team, vote in zip(teams, votes, strict=True)]
    odd = {}  # (team, causes) -> rank -> where it differs
    for i, (team, agreeing) in enumerate(zip(teams, agreed, strict=True)):
        for rank in set(team) - set(agreeing):
            others = agreeing or tuple(other for other in team if other != rank)
            causes = _causes(rank, others, agreed, conditions)
            wrong = (table[list(others)] != table[rank]).any(axis=(0, 2))
            odd.setdefault((i, causes), {})[rank] = wrong
    return tuple(
        Oddity(
            tuple(sorted(where)),
            tuple(np.array(tensors)[np.any(list(where.values()), axis=0)].tolist()),
            causes,
            tuple(teams[i]),
            votes[i].winners is not None,
        )
        for (i, causes), where in sorted(odd.items(), key=lambda item: min(item[1]))
    )


def _agreeing(team: Sequence[int], vote: Vote, table: np.ndarray) -> tuple[int, ...]:
    """Return who has won everywhere; without a majority, who holds the most frequent copy."""
    if vote.winners is not None:
        return tuple(rank for rank in team if rank not in vote.dissenters)
    copies = [table[rank].tobytes() for rank in team]
    usual = max(copies, key=copies.count)
    return tuple(rank for rank, copy in zip(team, copies, strict=True) if copy == usual)


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
    return f"nondeterministic at {name_tensors(report.tensors)}: {_joined(report)}"


def _instability(report: PreflightReport) -> str:
    (oddity,) = report.oddities
    alone = len(oddity.ranks) == 1
    whose = (
        f"{name_ranks(oddity.ranks)}'s own"
        if alone
        else f"of each of {name_ranks(oddity.ranks)} the"
    )
    words = f"nondeterministic at {name_tensors(report.tensors)}: {whose} two computations differ"
    if oddity.causes:
        return f"{words}: {', '.join(oddity.causes)}"
    if oddity.outvoted:
        return f"{words}, but not those of the others with the same settings: probably a fault"
    return f"{words}: use deterministic kernels"


def _weights(report: PreflightReport) -> str:
    odd = sorted({rank for oddity in report.oddities for rank in oddity.ranks})
    words = (
        f"{name_ranks(odd)} had other weights than the others before anything was computed, at "
        f"{name_tensors(report.tensors)}: broadcast them first (broadcast_parameters, "
        "broadcast_variables)"
    )
    if len(odd) == 1 and len(report.conditions) > 2:
        return f"{words}; if they were, {name_ranks(odd)} is faulty"
    return words


_WORDS = {
    DETERMINISTIC: _deterministic,
    NONDETERMINISTIC: _nondeterministic,
    UNSTABLE: _instability,
    FAULTY: lambda report: "; ".join(oddity.accusation() for oddity in report.oddities),
    WEIGHTS: _weights,
    MODELS: lambda report: f"the models differ: {report.difference}",
}


def _joined(report: PreflightReport) -> str:
    return "; ".join(dict.fromkeys(map(str, report.oddities)))
