"""What each setting of Detox would tolerate and cost, before a job runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from horovod_detox.config import Detox
from horovod_detox.planning.capture import Lost, lost_at_random, stands, worst_host
from horovod_detox.planning.transients import Endurance, Faults, endurance
from horovod_detox.vote.capture import faulty_votes
from horovod_detox.vote.groups import Groups, form_groups

GROUP_SIZES = (1, 3, 5, 7)
"""The odd ones: of an even group, half of the members can force a tie."""

PLAIN_RULES = (
    Detox(outer="mean"),
    Detox(outer="median"),
    Detox(outer="trimmed_mean"),
    Detox(outer="geometric_median"),
    Detox(outer="multi_krum"),
    Detox(outer="bulyan"),
)
"""Without redundancy."""

VOTED_RULES = (
    Detox(outer="mean"),  # redundancy alone
    Detox(outer="median"),
    Detox(outer="geometric_median"),
    Detox(inner="multi_krum", outer="mean", buckets=2),
    Detox(outer="bulyan"),
)
"""For the votes of groups. The median of bucket means is added with as many buckets as it needs."""


@dataclass(frozen=True)
class Job:
    """The job to plan for.

    Attributes:
        ranks: p, the number of ranks.
        byzantine: q, the number of faulty ranks to be prepared for.
        parameters: elements of the gradient.
        bytes_per_parameter: bytes of each of them.
        batch_size: b, the samples that a rank computes in a step.
        hosts: the host of each rank; None: not known.
        faults: transient ones, beside the faulty ranks; None: not asked for.

    Raises:
        ValueError: naming the field, its value and its bound.
    """

    ranks: int
    byzantine: int
    parameters: float = 11e6
    bytes_per_parameter: int = 4
    batch_size: int = 32
    hosts: tuple[str, ...] | None = None
    faults: Faults | None = None

    def __post_init__(self) -> None:
        for field in ("ranks", "parameters", "bytes_per_parameter", "batch_size"):
            if not 1 <= getattr(self, field) < float("inf"):
                raise ValueError(f"{field} = {getattr(self, field)}: it must be at least 1")
        if not 0 <= self.byzantine <= self.ranks:
            raise ValueError(
                f"byzantine = {self.byzantine}: it must be from 0 to the number of ranks, "
                f"{self.ranks}"
            )
        if self.hosts is not None and len(self.hosts) != self.ranks:
            raise ValueError(f"the hosts have {len(self.hosts)} slots for {self.ranks} ranks")

    @property
    def gradient_bytes(self) -> float:
        """Return the bytes of one gradient."""
        return self.parameters * self.bytes_per_parameter


@dataclass(frozen=True)
class Redundancy:
    """What a group size means, whatever the rules.

    Attributes:
        group_size: r asked for.
        sizes: of the k groups.
        captured_at_worst: groups that q colluding ranks capture if they choose their places.
        captured: `captured[c]` is the probability that ranks at random places capture c groups.
        bad_votes: the mean of that number.
        abstention: the probability that they force a tie in some group, which then abstains.
        intact: the probability that every group keeps its majority: then the vote is exact.
        compute: gradients computed for each distinct sample, p / k. As many times the variance of
            the gradient grows if every rank computes as many samples as without redundancy.
        batch: distinct samples in a step when a rank computes `batch_size` of them.
        samples_per_rank: samples for a rank to compute to keep the batch of a job without
            redundancy; then the compute grows and the variance does not.
        received: bytes that a rank receives in a step, and on average sends.
        of_allreduce: the same as a multiple of a ring allreduce's.
        leaders_received: bytes that a leader receives at most with `exchange="leaders"`.
        memory: bytes that the exchange takes on a rank beside the model and the gradient.
    """

    group_size: int
    sizes: tuple[int, ...]
    captured_at_worst: int
    captured: tuple[float, ...]
    bad_votes: float
    abstention: float
    intact: float
    compute: float
    batch: int
    samples_per_rank: float
    received: float
    of_allreduce: float
    leaders_received: float
    memory: float


@dataclass(frozen=True)
class Candidate:
    """One line of the table: what the rules tolerate with groups of this size.

    Attributes:
        group_size, inner, outer, buckets: the fields of Detox.
        fits: whether Detox accepts q for them.
        reason: why not, in the rule's words; empty if it does.
        stands: captured groups that the rules tolerate; None: they do not work on so few votes.
        holds: the probability that they tolerate what q ranks at random places capture and tie.
    """

    group_size: int
    inner: str
    outer: str
    buckets: int | None
    fits: bool
    reason: str
    stands: int | None
    holds: float

    @property
    def name(self) -> str:
        """Return the rules without the group size."""
        return _name(self)


@dataclass(frozen=True)
class HostLoss:
    """What it costs when all ranks of a host are faulty: of the hosts, the one that costs most.

    Attributes:
        group_size, placement: the fields of Detox.
        host, ranks: the host, and how many ranks it has.
        groups: k, the number of groups.
        captured, abstaining: groups that the host captures, and in which it forces a tie.
        stood_by: the rules that tolerate that.
    """

    group_size: int
    placement: str
    host: str
    ranks: int
    groups: int
    captured: int
    abstaining: int
    stood_by: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What was compared for a job."""

    job: Job
    redundancies: tuple[Redundancy, ...]
    candidates: tuple[Candidate, ...]
    host_losses: tuple[HostLoss, ...]
    endurances: tuple[Endurance, ...] = ()


def compare(job: Job) -> Comparison:
    """Compare group sizes and rules for a job.

    >>> comparison = compare(Job(ranks=45, byzantine=5))
    >>> [f"{share:.1%}" for share in comparison.redundancies[1].captured]
    ['59.7%', '37.2%', '3.1%']
    """
    redundancies, candidates, host_losses, endurances = [], [], [], []
    for group_size in group_sizes(job):
        groups = form_groups(job.ranks, group_size)
        lost = lost_at_random([*map(len, groups.members)], job.byzantine)
        redundancies.append(_redundancy(job, group_size, groups, lost))
        choices = _choices(job, group_size, groups)
        candidates += [_candidate(detox, groups, job.byzantine, lost) for detox in choices]
        host_losses += _host_losses(job, group_size, choices)
        if job.faults is not None:
            endurances.append(endurance(job.faults, groups, group_size))
    if job.faults is not None and job.ranks > 2:
        endurances.append(endurance(job.faults, form_groups(job.ranks, 1), None))
    return Comparison(
        job, tuple(redundancies), tuple(candidates), tuple(host_losses), tuple(endurances)
    )


def group_sizes(job: Job) -> list[int]:
    """Return the group sizes to compare, up to the first of which no group can be captured.

    >>> group_sizes(Job(ranks=45, byzantine=5)), group_sizes(Job(ranks=8, byzantine=2))
    ([1, 3, 5, 7, 11], [1, 3, 5])
    """
    exact = max(2 * job.byzantine + 1, 3)
    sizes = []
    for r in sorted({*GROUP_SIZES, exact}):
        if r <= job.ranks:
            sizes.append(r)
            if form_groups(job.ranks, r).smallest >= exact:
                break
    return sizes


def traffic(job: Job, groups: Groups) -> float:
    """Return how many gradients a rank receives in a step.

    Of its slice an owner receives the copy of every group but its own, and of the update the
    slices of all others: (k - 1) / p + (p - 1) / p. Fingerprints are not counted. Copies that are
    small together go to everybody.
    """
    p, k = job.ranks, len(groups)
    if _takes_one_round(job):
        return p - 1
    return (k - 1 + p - 1) / p


def memory(job: Job, groups: Groups) -> float:
    """Return the gradients that an exchange keeps: copy, update, votes received and own result.

    `make bench` measured 2.48 to 2.54 where this gives 2.42 to 2.5 (4 to 12 ranks, groups of 3).
    In parts it is less, 2.25 where this gives 2.5, unless the rule needs the Gram matrix.
    """
    if _takes_one_round(job):
        return 2 + job.ranks
    return 2 + (len(groups) + 1) / job.ranks


def _takes_one_round(job: Job) -> bool:
    """Return whether gradients are so small that every rank receives every copy."""
    return job.ranks * job.gradient_bytes <= Detox().one_round_bytes


def _redundancy(
    job: Job, group_size: int, groups: Groups, lost: dict[Lost, Fraction]
) -> Redundancy:
    p, k, gradient = job.ranks, len(groups), job.gradient_bytes
    received, allreduce = traffic(job, groups), 2 * (p - 1) / p
    captured = [Fraction(0)] * (max(c for c, _ in lost) + 1)
    for (c, _), share in lost.items():
        captured[c] += share
    return Redundancy(
        group_size,
        tuple(map(len, groups.members)),
        captured_at_worst=len(captured) - 1,
        captured=tuple(map(float, captured)),
        bad_votes=float(sum(c * share for c, share in enumerate(captured))),
        abstention=float(sum(share for (_, ties), share in lost.items() if ties)),
        intact=float(lost.get((0, 0), 0)),
        compute=p / k,
        batch=k * job.batch_size,
        samples_per_rank=p * job.batch_size / k,
        received=received * gradient,
        of_allreduce=received / allreduce if allreduce else 1.0,
        leaders_received=(max(map(len, groups.members)) + k + 1) * gradient,
        memory=memory(job, groups) * gradient,
    )


def _choices(job: Job, group_size: int, groups: Groups) -> list[Detox]:
    rules = PLAIN_RULES if group_size == 1 else VOTED_RULES
    candidates = [replace(rule, group_size=group_size) for rule in rules]
    # The fewest buckets of which f captured votes cannot capture half.
    buckets = 2 * faulty_votes(job.byzantine, groups) + 1
    if group_size > 1 and 1 < buckets < len(groups):
        candidates.append(Detox(group_size, outer="median", buckets=buckets))
    return candidates


def _candidate(
    detox: Detox, groups: Groups, byzantine: int, lost: dict[Lost, Fraction]
) -> Candidate:
    k = len(groups)
    reason = replace(detox, num_byzantine=byzantine).objection(groups)
    return Candidate(
        detox.group_size,
        str(detox.inner),
        str(detox.outer),
        detox.buckets,
        fits=not reason,
        reason=reason,
        stands=None if detox.objection(groups) else detox.fit(groups).max_f(k),
        holds=float(sum(share for loss, share in lost.items() if stands(detox, groups, loss))),
    )


def _host_losses(job: Job, group_size: int, candidates: Sequence[Detox]) -> Iterator[HostLoss]:
    if job.hosts is None:
        return
    for placement in ("spread", "packed") if group_size > 1 else ("spread",):
        groups = form_groups(job.ranks, group_size, placement, job.hosts)
        host, lost = worst_host(job.hosts, groups)
        yield HostLoss(
            group_size,
            placement,
            host,
            job.hosts.count(host),
            len(groups),
            *lost,
            tuple(_name(detox) for detox in candidates if stands(detox, groups, lost)),
        )


def _name(rules: Detox | Candidate) -> str:
    if rules.buckets is None:
        return str(rules.outer)
    return f"{rules.outer} of {rules.buckets} x {rules.inner}"
