"""The page of the experiment `variance`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot

from measuring.figures import save
from measuring.tables import Row, bullets, pivot

RESAMPLES = 2000
ESTIMATES = {"mean": "mean of the votes", "vote": "a single vote", "median": "median of the votes"}
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def draw(rows: list[Row], folder: Path) -> str:
    """Write the figure and return the text."""
    compared = comparisons(rows)
    plot(compared, folder / "variance.svg")
    ranks, base = rows[0]["groups"], rows[0]
    equal_work = rows[1]
    times = round(ranks / equal_work["groups"])
    ratios = pivot(
        compared,
        ("dataset", "steps", "setting", "groups", "batch"),
        lambda each: ESTIMATES[each["estimate"]],
        _cell,
    )
    errors = pivot(
        compared,
        ("dataset", "steps", "setting"),
        lambda each: ESTIMATES[each["estimate"]],
        lambda each: f"{each['error']:.3g}",
    )
    return f"""{ranks} ranks; redundancy has {equal_work["groups"]} groups of {times}. How far an
estimate `x` of the gradient is from the gradient `full` of all samples: the mean over
{len(base["mean"])} steps of `‖x - full‖² / ‖full‖²`, at fixed weights, without dropout. `x` is the
mean of the votes, which is what averaging yields when nobody lies; the median of the votes, a
robust rule; or a single vote, which is what every robust rule gets to see. The samples of a step
are dealt as the sampler does, none twice in an epoch. The weights are the initial ones, and those
after some steps of plain SGD.

![Squared errors in multiples of those without redundancy](variance.svg)

Squared errors in multiples of those without redundancy, with 95 % intervals (bootstrap of the
steps, as if they were independent); dashes are predictions.

{bullets(_seen(compared, times))}
Predicted is what sampling without replacement gives: the variance of the mean of `n` out of `N`
samples is proportional to `1 / n - 1 / N`. For the median nothing is predicted.

{ratios}
The errors themselves:

{errors}"""


def comparisons(rows: Sequence[Row]) -> list[Row]:
    """Return a row for each setting and estimate: its error, and its ratio to no redundancy.

    `low` and `high` bound 95 % of the ratios of resampled steps. The first setting of a dataset
    and its weights is the one without redundancy.
    """
    generator = np.random.default_rng(0)
    found, bases = [], {}
    for row in rows:
        base = bases.setdefault((row["dataset"], row["steps"]), row)
        for estimate in ESTIMATES:
            ours, theirs = np.array(row[estimate]), np.array(base[estimate])
            ratios = _resampled(ours, generator) / _resampled(theirs, generator)
            low, high = np.quantile(ratios, (0.025, 0.975))
            found.append(
                {name: row[name] for name in ("dataset", "steps", "setting", "groups", "batch")}
                | {"estimate": estimate, "error": ours.mean(), "is_base": row is base}
                | {"ratio": ours.mean() / theirs.mean(), "low": low, "high": high}
                | {"predicted": predicted(row, base, estimate)}
            )
    return found


def predicted(row: Row, base: Row, estimate: str) -> float | None:
    """Return the ratio of the variances of means of samples without replacement.

    >>> base = {"samples": 10**9, "groups": 45, "batch": 32}
    >>> round(predicted(base | {"groups": 15}, base, "mean"), 3)
    3.0
    """

    def variance(each: Row) -> float:
        count = each["batch"] * (each["groups"] if estimate == "mean" else 1)
        return 1 / count - 1 / each["samples"]

    return None if estimate == "median" else variance(row) / variance(base)


def _resampled(errors: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return means of errors drawn with replacement, `(n,) -> (RESAMPLES,)`."""
    return generator.choice(errors, (RESAMPLES, len(errors))).mean(axis=1)


def _cell(each: Row) -> str:
    """Return a ratio with its interval and its prediction."""
    if each["is_base"]:
        return "1"
    text = f"{each['ratio']:.2f} ({each['low']:.2f} to {each['high']:.2f})"
    return text if each["predicted"] is None else f"{text}, predicted {each['predicted']:.2f}"


def _seen(compared: Sequence[Row], times: int) -> list[str]:
    """Say in paragraphs what the rows show."""
    told = [each for each in compared if each["predicted"] is not None and not each["is_base"]]
    held = [each for each in told if each["low"] <= each["predicted"] <= each["high"]]
    work, batch = "equal work per rank", "equal global batch"
    return [
        f"Where DETOX loses: with as much work for every rank, the mean of the votes has "
        f"{_span(compared, work, 'mean')} times the squared error of averaging over all ranks "
        f"(predicted: {_span(compared, work, 'mean', 'predicted')}; above {times}, as "
        f"no sample is drawn twice).",
        f"With as many samples in a step, it has {_span(compared, batch, 'mean')} times the error "
        f"(predicted: 1), at {times} times the work.",
        f"A single vote then has {_span(compared, batch, 'vote')} times the error of a rank's "
        f"gradient without redundancy (predicted: {_span(compared, batch, 'vote', 'predicted')}); "
        f"with as much work for every rank {_span(compared, work, 'vote')} times (predicted: 1).",
        f"The median of the votes, from as many samples in a step, has "
        f"{_by_dataset(compared, batch, 'median')} times the error of the median of all ranks' "
        f"gradients; with as much work for every rank {_by_dataset(compared, work, 'median')} "
        f"times. Nobody lies here: what less noisy votes are worth to a rule when somebody does is "
        f"not measured.",
        f"{len(held)} of {len(told)} intervals hold the prediction.",
    ]


def _span(compared: Sequence[Row], setting: str, estimate: str, value: str = "ratio") -> str:
    """Return the least and the greatest value over datasets and weights."""
    found = [
        each[value]
        for each in compared
        if (each["setting"], each["estimate"]) == (setting, estimate)
    ]
    low, high = f"{min(found):.2f}", f"{max(found):.2f}"
    return low if low == high else f"{low} to {high}"


def _by_dataset(compared: Sequence[Row], setting: str, estimate: str) -> str:
    """Return the span of the ratios for each dataset."""
    return " and ".join(
        f"{_span([each for each in compared if each['dataset'] == name], setting, estimate)} "
        f"({name})"
        for name in dict.fromkeys(each["dataset"] for each in compared)
    )


def plot(compared: Sequence[Row], path: Path) -> None:
    """Draw ratios with intervals and predictions: a panel for each estimate."""
    cases = list(dict.fromkeys((each["dataset"], each["steps"]) for each in compared))
    settings = list(dict.fromkeys(each["setting"] for each in compared))
    figure, panels = pyplot.subplots(1, len(ESTIMATES), figsize=(8, 3), sharey=True, squeeze=False)
    for panel, (estimate, title) in zip(panels[0], ESTIMATES.items(), strict=True):
        for i, case in enumerate(cases):
            chosen = [
                each
                for each in compared
                if ((each["dataset"], each["steps"]), each["estimate"]) == (case, estimate)
            ]
            offset = 0.15 * (i - (len(cases) - 1) / 2)
            x = np.array([settings.index(each["setting"]) + offset for each in chosen])
            ratio = np.array([each["ratio"] for each in chosen])
            reach = [[each["ratio"] - each["low"], each["high"] - each["ratio"]] for each in chosen]
            panel.errorbar(
                x,
                ratio,
                np.array(reach).T * [not each["is_base"] for each in chosen],
                fmt="o",
                color=COLOURS[i % len(COLOURS)],
                markersize=3,
                linewidth=1,
                label=f"{case[0]}, after {case[1]} steps" if case[1] else f"{case[0]}, initial",
            )
            for place, each in zip(x, chosen, strict=True):
                if each["predicted"] is not None:
                    panel.hlines(each["predicted"], place - 0.07, place + 0.07, color="black")
        panel.axhline(1, color="black", linewidth=0.5)
        panel.set(title=title, yscale="log")
        panel.set_xticks(range(len(settings)), [name.replace(" ", "\n") for name in settings])
        panel.set_yticks([0.25, 1 / 3, 0.5, 1, 2, 3, 4], ["¼", "⅓", "½", "1", "2", "3", "4"])
        panel.minorticks_off()
    panels[0][0].set_ylabel("squared error / without redundancy")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncols=4)
    save(figure, path, bottom=0.07)
