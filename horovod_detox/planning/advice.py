"""Which setting to choose for a job, in words, and when none is needed."""

from collections.abc import Iterator, Sequence
from itertools import count

from horovod_detox.config import Detox
from horovod_detox.planning.comparison import Candidate, Comparison, HostLoss, Job, Redundancy
from horovod_detox.vote.groups import form_groups

LEAST_CHANCE = 1e-15
"""What is less likely is not told apart."""


def advise(comparison: Comparison) -> tuple[str, ...]:
    """Return what to choose for a job, the recommendation first.

    >>> from horovod_detox.planning.comparison import compare
    >>> for sentence in advise(compare(Job(ranks=4, byzantine=2))):
    ...     print(sentence.partition(". ")[0])
    2 faulty ranks of 4 are not a minority: no setting can tell who is right
    """
    return (
        *_about_ranks(comparison),
        *_about_faults(comparison),
        *_about_hosts(comparison.host_losses, comparison.job),
    )


def percent(share: float) -> str:
    """Write a probability so that only what is certain reads as 0 % or 100 %.

    >>> percent(0.3), percent(1e-9), percent(1 - 1e-9), percent(1.0)
    ('30.0 %', '<0.1 %', '>99.9 %', '100 %')
    """
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    if share < 0.0005:
        return "<0.1 %"
    return ">99.9 %" if share >= 0.9995 else f"{100 * share:.1f} %"


def chance(share: float) -> str:
    """Write a probability that may be small.

    >>> chance(0.321), chance(4.5e-5), chance(1e-40), chance(0.0)
    ('32.1 %', '1 in 2.2e+04', '<1 in 1e+15', '0 %')
    """
    if 0 < share < LEAST_CHANCE:
        return f"<1 in {1 / LEAST_CHANCE:.0g}"
    return f"1 in {1 / share:.2g}" if 0 < share < 0.001 else percent(share)


def _about_ranks(comparison: Comparison) -> Iterator[str]:
    job = comparison.job
    if job.byzantine == 0:
        yield _nothing_to_tolerate(comparison)
    elif 2 * job.byzantine >= job.ranks:
        yield (
            f"{_ranks(job.byzantine)} of {job.ranks} are not a minority: no setting can tell who "
            f"is right. Start at least {2 * job.byzantine + 1} ranks."
        )
    else:
        exact = comparison.redundancies[-1]
        bounded = [
            candidate
            for candidate in comparison.candidates
            if 1 < candidate.group_size < exact.group_size
            and candidate.fits
            and candidate.holds == 1
        ]
        if bounded:
            yield _bounded(comparison, bounded)
        elif exact.group_size > 3:
            yield _too_few_ranks(comparison)
        yield _exact(job, exact)
        yield _without_redundancy(comparison)


def _nothing_to_tolerate(comparison: Comparison) -> str:
    sentence = (
        "You do not need DETOX: without a faulty rank, Horovod's allreduce gives the same mean."
    )
    if comparison.job.faults is not None and comparison.job.faults.rate:
        sentence = (
            "No rank is faulty for good. With Horovod's allreduce transient faults go unnoticed: "
            f"{chance(comparison.endurances[0].stay)} of such jobs have at least one."
        )
    plain, *rest = comparison.redundancies
    if not rest:
        return sentence
    return (
        f"{sentence} Groups of 3 would take {rest[0].compute:.1f} times the compute for the same "
        f"batch, or leave {rest[0].batch} of {plain.batch} distinct samples in a step at the same "
        "compute. They would be exact for 1 faulty rank anywhere, and name it: plan for "
        "byzantine = 1 if a silent fault would cost more."
    )


def _about_faults(comparison: Comparison) -> Iterator[str]:
    """Say what healing is worth in the smallest groups that vote."""
    faults = comparison.job.faults
    for each in comparison.endurances:
        if faults is None or each.group_size is None or each.within_scrub is None:
            continue
        yield (
            f"With group_size={each.group_size}, transient faults cost some group its "
            f"majority with a chance of {chance(each.stay)} if they stay, of "
            f"{chance(each.within_scrub)} if they are healed within scrub_every="
            f"{faults.scrub_every} steps, and of {chance(each.at_once or 0)} if at once."
        )
        return


def _bounded(comparison: Comparison, fitting: Sequence[Candidate]) -> str:
    job, chosen = comparison.job, fitting[0]
    redundancy = _redundancy(comparison, chosen.group_size)
    others = [s.name for s in fitting[1:] if s.group_size == chosen.group_size]
    return (
        f"Recommended: {_call(chosen, job)}. {_ranks(job.byzantine)} capture at most "
        f"{redundancy.captured_at_worst} of {len(redundancy.sizes)} groups; this rule tolerates "
        f"{chosen.stands} and bounds the damage. At random places every group keeps its majority "
        f"in {percent(redundancy.intact)} of cases: then training is bit-identical to the "
        "fault-free run and every faulty rank is named. On average "
        f"{percent(redundancy.bad_votes / len(redundancy.sizes))} of the votes are bad, where "
        f"{percent(job.byzantine / job.ranks)} of the ranks are. {_price(redundancy)}"
        + (f" These rules also fit: {', '.join(others)}." if others else "")
    )


def _too_few_ranks(comparison: Comparison) -> str:
    """Say why no group size short of the exact one fits, and what would."""
    job = comparison.job
    tripled = _redundancy(comparison, 3)
    median = next(s for s in comparison.candidates if s.group_size == 3 and s.outer == "median")
    return (
        f"Too few ranks for {job.byzantine} faulty ones in groups of 3: they capture up to "
        f"{tripled.captured_at_worst} of {len(tripled.sizes)} groups, and the median tolerates "
        f"{median.stands}. At random places it tolerates them in {percent(median.holds)} of cases. "
        f"In the worst case it takes {least_ranks(job, 3, 'median')} ranks."
    )


def least_ranks(job: Job, group_size: int, outer: str) -> int:
    """Return how many ranks, more and in groups of r exactly, let the outer rule tolerate q.

    >>> least_ranks(Job(ranks=45, byzantine=20), 3, "median")
    63
    """
    detox = Detox(group_size, outer=outer, num_byzantine=job.byzantine)
    more = count((job.ranks // group_size + 1) * group_size, group_size)
    return next(p for p in more if not detox.objection(form_groups(p, group_size)))


def _exact(job: Job, redundancy: Redundancy) -> str:
    is_least = redundancy.group_size == 3
    sentence = (
        f"{'Recommended' if is_least else 'Exact, at a price'}: Detox("
        f'group_size={redundancy.group_size}, outer="mean", num_byzantine={job.byzantine}). '
        f"{_ranks(job.byzantine)} cannot outvote a group of {min(redundancy.sizes)} anywhere: "
        "training is bit-identical to the fault-free run and every faulty rank is named. "
        f"{_price(redundancy)}"
    )
    if len(redundancy.sizes) > 1:
        return sentence
    return f"{sentence} But all ranks compute the same batch then."


def _without_redundancy(comparison: Comparison) -> str:
    job = comparison.job
    fitting = [s for s in comparison.candidates if s.group_size == 1 and s.fits]
    names = ", ".join(s.name for s in fitting)
    return (
        "You do not need DETOX if an approximate update will do: "
        f"{_call(fitting[0], job)} tolerates {fitting[0].stands} of {job.ranks} ranks with neither "
        f"more compute nor more bytes than allreduce (what fits: {names}). But its update "
        "differs from the mean even without a fault, and nobody is named; lies that hide in the "
        "spread of honest gradients (ALIE, inner product) and ranks with different data can slow "
        "training down or stop it."
    )


def _about_hosts(losses: Sequence[HostLoss], job: Job) -> Iterator[str]:
    if not losses:
        return
    voted = [loss for loss in losses if loss.group_size > 1]
    exact = [loss for loss in voted if not loss.captured and not loss.abstaining]
    stood = [loss for loss in voted if loss.stood_by]
    if exact:
        yield (
            f"A whole host may lie with {_place(exact[0])}: no group loses its majority to any "
            "host."
        )
    elif stood:
        yield (
            f"A whole host may lie with {_place(stood[0])}: {_harm(stood[0])}, which these rules "
            f"tolerate: {', '.join(stood[0].stood_by)}."
        )
    else:
        largest = max(losses, key=lambda loss: loss.ranks)
        yield (
            f"No group size here tolerates a whole host that lies: {largest.host} has "
            f"{largest.ranks} of {job.ranks} ranks. It takes 3 hosts of equal size or more: spread "
            "over them, each group of 3 has one member on each."
        )


def _place(loss: HostLoss) -> str:
    return f'group_size={loss.group_size}, placement="{loss.placement}"'


def _harm(loss: HostLoss) -> str:
    groups = f"{loss.captured} of {loss.groups} groups"
    ties = f" and makes {loss.abstaining} abstain" if loss.abstaining else ""
    return f"{loss.host} ({loss.ranks} ranks) captures {groups}{ties}"


def _price(redundancy: Redundancy) -> str:
    return (
        f"It takes {redundancy.compute:.1f} times the compute for the same batch, and "
        f"{redundancy.of_allreduce:.2f} times allreduce's bytes."
    )


def _call(candidate: Candidate, job: Job) -> str:
    text = f"Detox(group_size={candidate.group_size}, "
    if candidate.buckets is not None:
        text += f'inner="{candidate.inner}", buckets={candidate.buckets}, '
    return f'{text}outer="{candidate.outer}", num_byzantine={job.byzantine})'


def _redundancy(comparison: Comparison, group_size: int) -> Redundancy:
    return next(r for r in comparison.redundancies if r.group_size == group_size)


def _ranks(number: int) -> str:
    return "1 faulty rank" if number == 1 else f"{number} faulty ranks"
