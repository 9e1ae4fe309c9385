"""One task set, scored one way: right and wrong per item, whether it can tell variants apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.quality import Estimate, Flips, Power, Scoring, SetQuality
from serve_app.evaluate.statistics.binomial import (
    mcnemar_exact,
    minimal_detectable,
    wilson_interval,
)
from serve_app.evaluate.statistics.bootstrap import RESAMPLES, mean_interval
from serve_app.evaluate.statistics.noninferiority import PairedDelta
from serve_app.evaluate.tasks.items import TaskSet

FLOOR, CEILING = 0.05, 0.98
"""Greedy: at most, at least this share right. By choice the floor is what guessing gives."""
MIN_ITEMS = 50
"""A set of fewer is shown and decides nothing."""


@dataclass(frozen=True)
class Answers:
    """What a pass answered to a set, by item; items without an answer are not there."""

    right: Mapping[int, bool]
    given: Mapping[int, object]
    """The answer itself, for those both wrong."""
    right_probability: Mapping[int, float]
    """By choice only."""
    n_failed: int


def read_greedy(tasks: TaskSet, records: Mapping[int, Mapping[str, Any]], n_failed: int) -> Answers:
    """From raw answers."""
    given = {i: str(record["text"]) for i, record in records.items()}
    right = {i: tasks.items[i].is_right(text) for i, text in given.items()}
    return Answers(right, {i: text.strip() for i, text in given.items()}, {}, n_failed)


def read_choice(tasks: TaskSet, records: Mapping[int, Mapping[str, Any]], n_failed: int) -> Answers:
    """From raw log-probabilities; items without choices are left out."""
    right, given, probability = {}, {}, {}
    for i, record in records.items():
        values = np.array(record["logprobs"])
        if not len(values):
            continue
        item = tasks.items[i]
        answer = item.choices.index(item.answer)
        best = int(values.argmax())
        shares = np.exp(values - values.max())
        given[i], right[i] = best, best == answer
        probability[i] = float(shares[answer] / shares.sum())
    return Answers(right, given, probability, n_failed)


def power_of(tasks: TaskSet, scoring: Scoring, base: Answers) -> Power:
    """By what the baseline gets right."""
    n, correct = len(base.right), sum(base.right.values())
    ends = wilson_interval(correct, n)
    if ends is None:
        return Power.FLOOR
    if correct / n >= CEILING:
        return Power.CEILING
    if scoring is Scoring.GREEDY:
        return Power.FLOOR if correct / n <= FLOOR else Power.INFORMATIVE
    guessing = float(np.mean([1 / len(tasks.items[i].choices) for i in base.right]))
    return Power.FLOOR if ends[0] <= guessing else Power.INFORMATIVE


def deciding(powers: Mapping[Scoring, Power]) -> Scoring:
    """Greedy where it can tell variants apart, else by choice where that can, else the one that is
    at no floor.
    """
    order = (Scoring.GREEDY, Scoring.CHOICE)
    for wanted in (Power.INFORMATIVE, Power.CEILING):
        for scoring in order:
            if powers.get(scoring) is wanted:
                return scoring
    return Scoring.GREEDY


def clusters_of(tasks: TaskSet, items: Sequence[int], first: int = 0) -> NDArray[np.int_]:
    """A number for each item's group, from `first` on; an item without a group is its own."""
    names: dict[object, int] = {}
    return np.array(
        [
            first + names.setdefault(tasks.items[i].group or i, len(names))
            for i in items
        ],
        dtype=np.int_,
    )  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Two passes on the items that both answered."""

    items: tuple[int, ...]
    first: NDArray[np.bool_]
    second: NDArray[np.bool_]
    clusters: NDArray[np.int_]

    @classmethod
    def of(cls, tasks: TaskSet, first: Answers, second: Answers) -> "Pair":
        """Aligned by item."""
        items = tuple(sorted(first.right.keys() & second.right.keys()))
        return cls(
            items,
            np.array([first.right[i] for i in items], dtype=np.bool_),
            np.array([second.right[i] for i in items], dtype=np.bool_),
            clusters_of(tasks, items),
        )

    @property
    def delta(self) -> PairedDelta | None:
        """None where both answered nothing."""
        return PairedDelta.of(self.first, self.second, self.clusters) if self.items else None


def alone(name: str, scoring: Scoring, found: Answers, power: Power, decides: bool) -> SetQuality:
    """The set's figures of one pass by itself."""
    n, correct = len(found.right), sum(found.right.values())
    ends = wilson_interval(correct, n)
    accuracy = Estimate(value=correct / n, low=ends[0], high=ends[1]) if ends else None
    return SetQuality(
        name=name,
        scoring=scoring,
        n=n,
        n_failed=found.n_failed,
        accuracy=accuracy,
        power=power,
        decides=decides,
    )


def flips_of(pair: Pair, first: Answers, second: Answers) -> Flips:
    """What became of each of the baseline's answers."""
    wrong = [i for i in pair.items if not first.right[i] and not second.right[i]]
    same = sum(first.given[i] == second.given[i] for i in wrong)
    return Flips(
        both_right=int((pair.first & pair.second).sum()),
        right_to_wrong=int((pair.first & ~pair.second).sum()),
        wrong_to_right=int((~pair.first & pair.second).sum()),
        both_wrong_same=same,
        both_wrong_different=len(wrong) - same,
    )


def paired_figures(
    tasks: TaskSet, base: Answers, found: Answers, floor_flips: float | None, seed: int
) -> dict[str, Any]:
    """Fields of `SetQuality` that need the baseline."""
    pair = Pair.of(tasks, base, found)
    delta = pair.delta
    if delta is None:
        return {}
    low, high = delta.interval
    flips = delta.found.flips
    return {
        "delta": Estimate(value=delta.found.delta, low=low, high=high),
        "flips": flips_of(pair, base, found),
        "mcnemar_p": mcnemar_exact(delta.found.lost, delta.found.gained),
        "minimal_detectable": minimal_detectable(delta.found.n, flips),
        "excess_flips": None if floor_flips is None else flips - floor_flips,
        "right_probability_delta": _probability_delta(tasks, pair, base, found, seed),
    }


def _probability_delta(
    tasks: TaskSet, pair: Pair, base: Answers, found: Answers, seed: int
) -> Estimate | None:
    items = [i for i in pair.items if i in base.right_probability and i in found.right_probability]
    if not items:
        return None
    values = np.array([found.right_probability[i] - base.right_probability[i] for i in items])
    ends = mean_interval(values, clusters_of(tasks, items), seed=seed, n_resamples=RESAMPLES)
    low, high = ends or (None, None)
    return Estimate(value=float(values.mean()), low=low, high=high)
