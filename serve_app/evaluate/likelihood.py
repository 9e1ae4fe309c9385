"""From the raw log-probabilities of a pass to `Likelihood`, and to the test of its perplexity."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np

from serve_app.domain.quality import Estimate, Likelihood
from serve_app.evaluate.agreement import Compared, Window, agreement, compare, ratio_estimate
from serve_app.evaluate.statistics.bootstrap import RESAMPLES, Values
from serve_app.evaluate.statistics.student import normal_score, t_score


@dataclass(frozen=True)
class Logprobs:
    """What a pass answered: windows and right answers by index; `gap`: why there is nothing.

    `n_failed`: of both, requests without an answer.
    """

    windows: Mapping[int, Window]
    answers: Mapping[int, Values]
    gap: str | None = None
    n_failed: int = 0

    @classmethod
    def of(
        cls,
        windows: Mapping[int, Mapping[str, Any]],
        answers: Mapping[int, Mapping[str, Any]],
        gap: str | None,
        n_failed: int = 0,
    ) -> "Logprobs":
        """From raw records."""
        return cls(
            {i: Window(np.array(each["own"]), each["top"]) for i, each in windows.items()},
            {i: np.array(each["own"]) for i, each in answers.items()},
            gap if not windows else None,
            n_failed,
        )


@dataclass(frozen=True)
class Log:
    """A mean log-ratio with its standard error by windows, for a one-sided test by Student's t."""

    mean: float
    error: float | None
    n_windows: int

    def p_above(self, limit: float) -> float | None:
        """One-sided p-value of the hypothesis that the true one is at least `limit`."""
        return self._p(limit - self.mean)

    def p_below(self, limit: float) -> float | None:
        """As `p_above`: at most `limit`."""
        return self._p(self.mean - limit)

    def _p(self, room: float) -> float | None:
        if self.error is None:
            return None
        if self.error == 0:
            return 0.0 if room > 0 else 1.0
        return NormalDist().cdf(-normal_score(room / self.error, self.n_windows - 1))

    def upper(self, z: float) -> float | None:
        """The one-sided bound above the mean, at the level that `z` has of a normal one."""
        if self.error is None:
            return None
        return self.mean + t_score(z, self.n_windows - 1) * self.error


def likelihood(
    found: Logprobs,
    base: Logprobs | None,
    floor: Logprobs | None,
    window_bytes: Sequence[int] | None,
    *,
    seed: int = 0,
    n_resamples: int = RESAMPLES,
) -> Likelihood | None:
    """None where the pass has no window. `base` None: it is the baseline itself."""
    if not found.windows:
        return None
    indices = sorted(found.windows)
    nll = np.array([-found.windows[i].own.sum() for i in indices])
    n = np.array([float(len(found.windows[i].own)) for i in indices])
    how = {"seed": seed, "n_resamples": n_resamples}
    perplexity = ratio_estimate(nll, n, is_log=True, seed=seed, n_resamples=n_resamples)
    assert perplexity is not None
    per_byte = None
    if window_bytes is not None:
        n_bytes = np.array([float(window_bytes[i]) for i in indices])
        per_byte = ratio_estimate(nll / math.log(2), n_bytes, seed=seed, n_resamples=n_resamples)
    answers = _answer_perplexity(found.answers, None, **how)
    alone = Likelihood(
        n_tokens=int(n.sum()),
        n_windows=len(indices),
        perplexity=perplexity,
        bits_per_byte=per_byte,
        answer_perplexity=answers,
    )
    return alone if base is None else _against(alone, found, base, floor, how)


def _against(
    alone: Likelihood,
    found: Logprobs,
    base: Logprobs,
    floor: Logprobs | None,
    how: dict[str, int],
) -> Likelihood:

    both = [i for i in sorted(found.windows) if _comparable(found, base, i)]
    if not both:
        why = base.gap or "the baseline was not asked about the same windows"
        return msgspec.structs.replace(alone, gap=why)
    compared = {i: compare(base.windows[i], found.windows[i]) for i in both}
    sums = np.array([-compared[i].delta.sum() for i in both])
    sizes = np.array([float(len(compared[i].delta)) for i in both])
    rows = [compared[i] for i in both]
    excess = None
    if floor is not None:
        kept = [i for i in both if _comparable(floor, base, i)]
        again: list[Compared] = [compare(base.windows[i], floor.windows[i]) for i in kept]
        if kept:
            excess = agreement([compared[i] for i in kept], again, how["seed"], how["n_resamples"])
    has_kl = all(each.kl is not None for each in rows)
    return msgspec.structs.replace(
        alone,
        perplexity_ratio=ratio_estimate(sums, sizes, is_log=True, **how),
        answer_perplexity_ratio=_answer_perplexity(found.answers, base.answers, **how),
        agreement=agreement(rows, None, how["seed"], how["n_resamples"]),
        excess=excess,
        gap=None if has_kl else "no KL: one of the two does not name the most likely tokens by id",
    )


def log_ratio(found: Logprobs, base: Logprobs) -> Log | None:
    """Of the variant's perplexity over the baseline's, windows as the units."""
    both = [i for i in sorted(found.windows) if _comparable(found, base, i)]
    if not both:
        return None
    sums = np.array([(base.windows[i].own - found.windows[i].own).sum() for i in both])
    sizes = np.array([len(found.windows[i].own) for i in both])
    mean = float(sums.sum() / sizes.sum())
    if len(both) < 2:
        return Log(mean, None, len(both))
    spread = sums - mean * sizes
    factor = len(both) / (len(both) - 1)
    error = float(np.sqrt(factor * (spread**2).sum()) / sizes.sum())
    return Log(mean, error, len(both))


def _comparable(found: Logprobs, base: Logprobs, i: int) -> bool:
    return (
        i in found.windows
        and i in base.windows
        and len(found.windows[i].own) == len(base.windows[i].own)
    )


def _answer_perplexity(
    found: Mapping[int, Values], base: Mapping[int, Values] | None, *, seed: int, n_resamples: int
) -> Estimate | None:
    both = sorted(found) if base is None else sorted(found.keys() & base.keys())
    less = [0.0 if base is None else float(base[i].sum()) for i in both]
    sums = np.array([b - float(found[i].sum()) for i, b in zip(both, less, strict=True)])
    sizes = np.array([float(len(found[i])) for i in both])
    return ratio_estimate(sums, sizes, is_log=True, seed=seed, n_resamples=n_resamples)
