"""The settings of a job and what they mean for its ranks."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from numbers import Real
from typing import Any

from horovod_detox.aggregators import Aggregator, Hierarchy, SignMajority, TooFewVotes, by_name
from horovod_detox.exchange import EXCHANGES
from horovod_detox.vote.capture import faulty_votes, silenced_groups
from horovod_detox.vote.fingerprint import FUNCTIONS
from horovod_detox.vote.groups import PLACEMENTS, Groups, form_groups, most_witnesses

PREFIX = "HOROVOD_DETOX_"
OTHER_VARIABLES = {PREFIX + "ATTACK", PREFIX + "CACHE"}


@dataclass(frozen=True)
class Detox:
    """How gradients are grouped, voted on and aggregated.

    Attributes:
        group_size: r, the ranks that compute the same batch; 1 is plain robust aggregation.
        inner: aggregator inside each bucket of votes (A0 in the paper), a name or an object.
        outer: aggregator of the bucket results (A1 in the paper), a name or an object.
        buckets: number of buckets; None: one for every vote.
        num_byzantine: q, the number of faulty ranks to be prepared for: the aggregators must
            tolerate all groups that q ranks can capture or tie, wherever these ranks are. None: as
            many as the aggregators can tolerate.
        max_skipped_steps: how many steps in a row all ranks may skip because too few votes are
            left, before the job ends. 0: it ends at the first such step.
        placement: `spread` puts the members of a group on different hosts, `packed` on the same
            host, `random` deals them by `seed`.
        timeout: seconds to wait for a rank that makes no progress, in an exchange or in any
            collective of Horovod; for a rank that is at work, three times as long.
        preflight: whether the first exchange of an optimizer also compares what may make ranks
            compute different bits. If honest ranks would be accused, the job ends; if only a faulty
            rank differs, it goes on.
        momentum: beta; the aggregators get the running mean `m <- beta m + (1 - beta) v` of each
            group's votes v, so that a lie cannot hide in the noise of single steps (Karimireddy,
            He, Jaggi, ICML 2021). Use it instead of the optimizer's own momentum. With
            `witnesses=2` a rank that computes a wrong mean is named. 0: the votes themselves.
        tolerance: for jobs whose honest ranks cannot compute the same bits: copies of a group agree
            when they are this close, relative to their lengths. The promise is weaker then: see
            docs/tolerance.md (`sharded` only, without witnesses). 0: only equal bits agree.
        witnesses: w, the number of ranks of other groups that repeat what one rank computes for all
            (`sharded` only): one finds a wrong result, two or more name who computed it.
        fingerprint: the hash by which the vote compares copies: `nh`, which can be fooled only by
            reading the memory of a rank, or `blake3` (which needs the package of this name), for
            ranks whose code may lie: see docs/fingerprints.md.
        exchange: how copies and votes travel: `sharded`, `gathered`, or `leaders`, the scheme as
            published.
        one_round_bytes: when the copies of all ranks together have at most this many bytes,
            `sharded` works as `gathered`, which takes one round of messages instead of two.
        overlap_bytes: larger gradients are exchanged in parts of at most this many bytes (`sharded`
            without a tolerance), in PyTorch and in a `tf.function` each part as soon as the
            backward pass has computed it. 0: as a whole, after the backward pass.
        scrub_every: the number of exchanges after which ranks compare what should be equal on them
            (weights, optimizer state, buffers, random states). A rank that differs from most gets
            what most have: see docs/replicas.md. 0: only after a rank was outvoted.
        seed: seed of the random placement.

    Raises:
        ValueError: naming the field, its value and its bound.
    """

    group_size: int = 3
    inner: str | Aggregator = "mean"
    outer: str | Aggregator = "median"
    buckets: int | None = None
    num_byzantine: int | None = None
    max_skipped_steps: int = 10
    placement: str = "spread"
    timeout: float = 600.0
    preflight: bool = True
    momentum: float = 0.0
    tolerance: float = 0.0
    witnesses: int = 0
    fingerprint: str = "nh"
    exchange: str = "sharded"
    one_round_bytes: int = 1 << 22
    overlap_bytes: int = 1 << 24
    scrub_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        _check_integer("group_size", self.group_size, at_least=1)
        _check_integer("seed", self.seed, at_least=0)
        _check_integer("witnesses", self.witnesses, at_least=0)
        _check_integer("one_round_bytes", self.one_round_bytes, at_least=0)
        _check_integer("overlap_bytes", self.overlap_bytes, at_least=0)
        _check_integer("scrub_every", self.scrub_every, at_least=0)
        if self.buckets is not None:
            _check_integer("buckets", self.buckets, at_least=1)
        if self.num_byzantine is not None:
            _check_integer("num_byzantine", self.num_byzantine, at_least=0)
        _check_integer("max_skipped_steps", self.max_skipped_steps, at_least=0)
        _check_share("momentum", self.momentum)
        _check_share("tolerance", self.tolerance)
        _check_choice("placement", self.placement, PLACEMENTS)
        _check_choice("fingerprint", self.fingerprint, FUNCTIONS)
        if self.fingerprint == "blake3" and find_spec("blake3") is None:
            raise ValueError("fingerprint = 'blake3': pip install 'horovod_detox[blake3]' first")
        _check_choice("exchange", self.exchange, tuple(EXCHANGES))
        if self.witnesses and self.exchange != "sharded":
            raise ValueError(
                f"witnesses = {self.witnesses}: they check what one rank computes for all, as it "
                "does in exchange='sharded' only: use that, or witnesses=0"
            )
        if self.tolerance and self.exchange != "sharded":
            raise ValueError(
                f"tolerance = {self.tolerance}: with exchange = {self.exchange!r} several ranks "
                "take the same vote, and ranks that round differently could come to different "
                "results: use exchange='sharded'"
            )
        if self.tolerance and self.witnesses:
            raise ValueError(
                f"tolerance = {self.tolerance}: each of witnesses = {self.witnesses} would have to "
                "receive every copy: use witnesses=0"
            )
        if not self.timeout > 0:
            raise ValueError(f"timeout = {self.timeout}: it must be positive")
        if not isinstance(self.preflight, bool):
            raise ValueError(f"preflight = {self.preflight!r}: it must be True or False")
        for field in ("inner", "outer"):
            try:
                _aggregator(getattr(self, field))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{field}: {error}") from None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Detox":
        """Read the fields from the variables HOROVOD_DETOX_<FIELD>.

        Raises:
            ValueError: for a variable with this prefix that is not a field, or a bad value.

        >>> Detox.from_environment({"HOROVOD_DETOX_GROUP_SIZE": "5"}).group_size
        5
        """
        types = {PREFIX + field.name.upper(): field for field in fields(cls)}
        given = {name: text for name, text in environ.items() if name.startswith(PREFIX)}
        unknown = given.keys() - types.keys() - OTHER_VARIABLES
        if unknown:
            raise ValueError(
                f"{min(unknown)} is not a variable of horovod_detox: "
                f"choose from {', '.join(sorted(types.keys() | OTHER_VARIABLES))}"
            )
        return cls(
            **{
                types[name].name: _parse(name, types[name].type, text)
                for name, text in given.items()
                if name in types
            }
        )

    def plan(self, world_size: int, hosts: Sequence[object] | None = None) -> "Plan":
        """Form the groups of p ranks and fit the aggregators to them.

        Raises:
            ValueError: when the ranks cannot form the groups, or the aggregators cannot tolerate
                `num_byzantine`; it says which settings fit.
        """
        groups = form_groups(world_size, self.group_size, self.placement, hosts, self.seed)
        if self.witnesses > (most := most_witnesses(groups)):
            raise ValueError(
                f"witnesses = {self.witnesses}: {len(groups)} groups of {world_size} ranks have at "
                f"most {most}, one in each other group"
            )
        try:
            return Plan(self, groups, self.fit(groups), self.hierarchy())
        except ValueError as error:
            raise ValueError(f"{error}. {self._advice(world_size)}") from None

    def fit(self, groups: Groups) -> Hierarchy:
        """Build the two-level rule for the votes of these groups.

        Raises:
            ValueError: when it cannot tolerate what `num_byzantine` ranks can capture and tie.
        """
        k = len(groups)
        if self.buckets is not None and self.buckets > k:
            raise ValueError(f"buckets = {self.buckets}: there are only {k} votes to put into them")
        rule = self.hierarchy()
        if self.num_byzantine is not None:
            rule = rule.with_f(faulty_votes(self.num_byzantine, groups), k)
            self._check_ties(groups)
        rule.check(k)
        return rule

    def hierarchy(self) -> Hierarchy:
        """Build the two-level rule as it was given, not fitted to any votes."""
        return Hierarchy(_aggregator(self.inner), _aggregator(self.outer), self.buckets)

    def objection(self, groups: Groups) -> str:
        """Return why the aggregators do not fit these groups, in their words; empty if they do."""
        try:
            self.fit(groups)
        except ValueError as error:
            return str(error)
        return ""

    def describe(self) -> dict[str, str]:
        """Return every field as text, to compare settings between ranks."""
        return {field.name: repr(getattr(self, field.name)) for field in fields(self)}

    def _check_ties(self, groups: Groups) -> None:
        """Check that the rule tolerates it when faulty ranks leave groups without a vote."""
        q, k = self.num_byzantine or 0, len(groups)
        for silenced in silenced_groups(q, groups):
            f = faulty_votes(q, groups, silenced)
            try:
                self.hierarchy().prepared(k - len(silenced), f)
            except TooFewVotes as error:
                raise ValueError(
                    f"num_byzantine = {q} ranks can leave {len(silenced)} of {k} groups without a "
                    f"majority and capture {f}: {error}"
                ) from None

    def _advice(self, world_size: int) -> str:
        """Say which group_size and num_byzantine the aggregators can work with."""
        fits = {}
        for r in range(1, world_size + 1):
            groups = form_groups(world_size, r)
            qs = [
                q for q in range(world_size) if not replace(self, num_byzantine=q).objection(groups)
            ]
            if qs and len(groups) > 1:
                fits[r] = max(qs)
        if not fits:
            return f"No group_size fits {world_size} ranks: choose another aggregator"
        settings = ", ".join(f"group_size={r} with num_byzantine<={q}" for r, q in fits.items())
        return f"What fits {world_size} ranks: {settings}"


@dataclass(frozen=True)
class Plan:
    """The settings applied to p ranks.

    Attributes:
        config: the settings.
        groups: of the ranks.
        rule: for the votes of all groups.
        given: the rule as it was given, not fitted to any votes.
    """

    config: Detox
    groups: Groups
    rule: Hierarchy
    given: Hierarchy

    def at(self, step: int) -> "Plan":
        """Return the plan for this step; it differs between steps if the rule draws numbers."""
        return replace(self, rule=self.rule.at(step), given=self.given.at(step))

    def rule_without(self, silenced: Collection[int], joined: Collection[int] = ()) -> Hierarchy:
        """Return the rule for the votes of all groups but some.

        It is prepared for the votes that `num_byzantine` ranks can still capture. No f that was
        given is lowered.

        Args:
            silenced: groups that faulty ranks have left without a majority.
            joined: groups that have no more data, which is no fault.

        Raises:
            TooFewVotes: when the votes that are left cannot tolerate that.
        """
        if not silenced and not joined:
            return self.rule
        f, q = None, self.config.num_byzantine
        if q is not None:
            f = faulty_votes(q, self.groups, silenced, joined)
        return self.given.prepared(len(self.groups) - len(silenced) - len(joined), f)

    @property
    def captured(self) -> int:
        """Return how many votes `num_byzantine` ranks can capture; 0 where it is not given."""
        return faulty_votes(self.config.num_byzantine or 0, self.groups)

    @property
    def tolerance(self) -> float:
        """Return how close copies of a group must be; 0: equal."""
        return self.config.tolerance

    @property
    def witnesses(self) -> int:
        """Return w, how many ranks repeat what an owner computes."""
        return self.config.witnesses

    def check_signs(self) -> None:
        """Check that the rule works on signs, of which only the majority can be taken.

        Raises:
            ValueError: naming the setting to change.
        """
        if not isinstance(self.rule.outer, SignMajority):
            raise ValueError(
                f"outer = {self.config.outer!r} needs numbers, and Compression.sign sends only "
                "their signs: use Detox(outer='sign_majority'), or another compression"
            )
        if self.config.momentum:
            raise ValueError(
                f"momentum = {self.config.momentum}: means need numbers, and Compression.sign "
                "sends only their signs: use Detox(momentum=0), or another compression"
            )
        if self.config.tolerance:
            raise ValueError(
                f"tolerance = {self.config.tolerance}: distances need numbers, and "
                "Compression.sign sends only their signs: use Detox(tolerance=0), or another "
                "compression"
            )
        buckets, k = self.rule.buckets, len(self.groups)
        if buckets is not None and buckets < k:
            raise ValueError(
                f"buckets = {buckets}: inner = {self.config.inner!r} would need the numbers of {k} "
                "votes, and Compression.sign sends only their signs: use Detox(buckets=None), or "
                "another compression"
            )


def _aggregator(rule: str | Aggregator) -> Aggregator:
    if isinstance(rule, str):
        return by_name(rule)
    if isinstance(rule, Aggregator):
        return rule
    raise TypeError(f"{rule!r} is neither an aggregator nor the name of one")


def _check_integer(field: str, value: Any, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{field} = {value!r}: it must be an integer of at least {at_least}")


def _check_share(field: str, value: Any) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < 1:
        raise ValueError(f"{field} = {value!r}: it must be at least 0 and less than 1")


def _check_choice(field: str, value: Any, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{field} = {value!r}: it must be one of {', '.join(choices)}")


def _parse(variable: str, annotation: Any, text: str) -> Any:
    """Turn the text of a variable into the type of its field."""
    if annotation is bool:
        return _truth(variable, text)
    if annotation == (int | None) and text.lower() == "none":
        return None
    try:
        if annotation in (int, int | None):
            return int(text)
        return float(text) if annotation is float else text
    except ValueError:
        raise ValueError(f"{variable} = {text!r}: it must be a number") from None


def _truth(variable: str, text: str) -> bool:
    """Read a yes or a no as people write them."""
    truth = {"1": True, "true": True, "0": False, "false": False}.get(text.strip().lower())
    if truth is None:
        raise ValueError(f"{variable} = {text!r}: it must be 1 or 0, or true or false")
    return truth
