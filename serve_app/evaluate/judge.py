"""From everything that was answered to `QualityReport`'s variants. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from serve_app.domain.quality import (
    Decision,
    Estimate,
    PairQuality,
    Power,
    QualityBar,
    Scoring,
    SetQuality,
    TextQuality,
    VariantQuality,
    pairs_of,
)
from serve_app.domain.verdict import Verdict
from serve_app.evaluate.agreement import capped_exp
from serve_app.evaluate.likelihood import Log, Logprobs, likelihood, log_ratio
from serve_app.evaluate.score import (
    MIN_ITEMS,
    Answers,
    Pair,
    alone,
    clusters_of,
    deciding,
    paired_figures,
    power_of,
)
from serve_app.evaluate.statistics.binomial import mcnemar_exact, wilson_interval
from serve_app.evaluate.statistics.decide import judge_noninferiority, worst
from serve_app.evaluate.statistics.noninferiority import PairedDelta, holm, z_of
from serve_app.evaluate.tasks.items import TaskSet

MAX_FAILED = 0.01
"""Share of requests without an answer above which the evidence is broken: what is missing may be
what is wrong."""


@dataclass(frozen=True)
class Answered:
    """All that one pass answered."""

    name: str
    model: str
    sets: Mapping[tuple[str, Scoring], Answers]
    logprobs: Logprobs
    texts: tuple[TextQuality, ...] = ()


@dataclass(frozen=True)
class Question:
    """What was asked: the sets, and the bytes behind the windows."""

    sets: tuple[TaskSet, ...]
    window_bytes: tuple[int, ...] | None
    bar: QualityBar
    seed: int = 0
    n_resamples: int = 10_000


class Judge:
    """The baseline's answers, and with them what the sets can tell."""

    def __init__(self, question: Question, base: Answered, floor: Answered | None) -> None:
        self.question = question
        self.base = base
        self.floor = floor
        self.powers: dict[tuple[str, Scoring], Power] = {
            (tasks.name, scoring): power_of(tasks, scoring, base.sets[tasks.name, scoring])
            for tasks in question.sets
            for scoring in Scoring
            if (tasks.name, scoring) in base.sets and base.sets[tasks.name, scoring].right
        }
        self.scorings = {
            tasks.name: deciding({s: p for (n, s), p in self.powers.items() if n == tasks.name})
            for tasks in question.sets
        }

    @property
    def counted(self) -> tuple[TaskSet, ...]:
        """Sets that count: large enough, and not at a floor."""
        return tuple(
            tasks
            for tasks in self.question.sets
            if len(tasks.items) >= MIN_ITEMS
            and self.powers.get((tasks.name, self.scorings[tasks.name]), Power.FLOOR)
            is not Power.FLOOR
        )

    def judge(self, others: Sequence[Answered]) -> tuple[VariantQuality, ...]:
        """The baseline first. Holm's correction is across `others`."""
        pooled = {each.name: self.pooled(self.base, each) for each in others}
        known = {name: delta for name, delta in pooled.items() if delta is not None}
        score = self.score_of(self.base)
        decisions: dict[str, list[Decision]] = {each.name: [] for each in others}
        broken = _of_failures(self.base)
        for each in others:
            decisions[each.name] += [*map(_of_baseline, broken), *_of_failures(each)]
        for name, found in judge_noninferiority(
            known, score.value if score else 0.0, self.question.bar.margin, self.question.bar.alpha
        ).items():
            decisions[name].append(
                Decision(
                    name="accuracy",
                    verdict=found.verdict,
                    reason=found.reason,
                    value=found.value,
                    bound=found.bound,
                    limit=found.limit,
                    p_value=found.p_value,
                    p_adjusted=found.p_adjusted,
                )
            )
        for name in pooled.keys() - known.keys():
            decisions[name].append(
                Decision(
                    name="accuracy",
                    verdict=Verdict.INCONCLUSIVE,
                    reason="no task set that was asked can tell variants apart",
                )
            )
        self._judge_sets(others, decisions)
        self._judge_perplexity(others, decisions)
        first = self._quality(self.base, None, broken)
        return (first, *(self._quality(each, self.base, decisions[each.name]) for each in others))

    def noise_floor(self) -> VariantQuality | None:
        """The baseline against itself."""
        return self._quality(self.floor, self.base, ()) if self.floor is not None else None

    def pooled(self, first: Answered, second: Answered) -> PairedDelta | None:
        """Right and wrong over the sets that count; None where both answered none of them."""
        rows, offset = [], 0
        for tasks in self.counted:
            key = tasks.name, self.scorings[tasks.name]
            if key not in first.sets or key not in second.sets:
                continue
            pair = Pair.of(tasks, first.sets[key], second.sets[key])
            rows.append((pair.first, pair.second, clusters_of(tasks, pair.items, offset)))
            offset += len(tasks.items)
        if not rows or not sum(len(first) for first, _, _ in rows):
            return None
        one, other, clusters = (np.concatenate(each) for each in zip(*rows, strict=True))
        return PairedDelta.of(one, other, clusters)

    def score_of(self, found: Answered) -> Estimate | None:
        """Accuracy over the sets that count."""
        keys = [(tasks.name, self.scorings[tasks.name]) for tasks in self.counted]
        answers = [found.sets[key] for key in keys if key in found.sets]
        n = sum(len(each.right) for each in answers)
        correct = sum(sum(each.right.values()) for each in answers)
        ends = wilson_interval(correct, n)
        return Estimate(value=correct / n, low=ends[0], high=ends[1]) if ends else None

    def pairs(self, others: Sequence[Answered]) -> tuple[PairQuality, ...]:
        """Every two variants, the baseline among them."""
        score = self.score_of(self.base)
        by_name = {each.name: each for each in (self.base, *others)}
        found = {
            names: self.pooled(by_name[names[1]], by_name[names[0]])
            for names in pairs_of(tuple(by_name))
        }
        known = {names: delta for names, delta in found.items() if delta is not None}
        if score is None or score.value == 0:
            return ()
        p_values = [mcnemar_exact(d.found.lost, d.found.gained) for d in known.values()]
        return tuple(
            PairQuality(
                first=first,
                second=second,
                n=delta.found.n,
                gain=_scaled(delta, 1 / score.value),
                mcnemar_p=p_value,
                p_adjusted=adjusted,
            )
            for ((first, second), delta), p_value, adjusted in zip(
                known.items(), p_values, holm(p_values), strict=True
            )
        )

    def _judge_sets(
        self, others: Sequence[Answered], decisions: Mapping[str, list[Decision]]
    ) -> None:
        """A set that alone is shown to be worse fails the variant, whatever the others say."""
        bar, sets = self.question.bar, self.counted
        for tasks in sets:
            key = tasks.name, self.scorings[tasks.name]
            pairs = {e.name: self.delta(tasks, e) for e in others}
            known = {name: delta for name, delta in pairs.items() if delta is not None}
            right = self.base.sets[key].right
            accuracy = sum(right.values()) / len(right)
            for name, found in judge_noninferiority(
                known, accuracy, bar.margin, bar.alpha / len(sets)
            ).items():
                if found.verdict is Verdict.FAIL:
                    decisions[name].append(
                        Decision(
                            name=f"accuracy of {tasks.name}",
                            verdict=found.verdict,
                            reason=f"{tasks.name}: {found.reason}",
                            value=found.value,
                            bound=found.bound,
                            limit=found.limit,
                        )
                    )

    def delta(self, tasks: TaskSet, found: Answered) -> PairedDelta | None:
        """Of one set, by the scoring that counts."""
        key = tasks.name, self.scorings[tasks.name]
        if key not in found.sets or key not in self.base.sets:
            return None
        return Pair.of(tasks, self.base.sets[key], found.sets[key]).delta

    def _judge_perplexity(
        self, others: Sequence[Answered], decisions: Mapping[str, list[Decision]]
    ) -> None:
        bar = self.question.bar
        limit = math.log(bar.max_perplexity_ratio)
        logs = {each.name: log_ratio(each.logprobs, self.base.logprobs) for each in others}
        known = {name: log for name, log in logs.items() if log is not None}
        holds = holm([_or_one(log.p_above(limit)) for log in known.values()])
        breaks = holm([_or_one(log.p_below(limit)) for log in known.values()])
        for (name, log), p_holds, p_breaks in zip(known.items(), holds, breaks, strict=True):
            decisions[name].append(_of_perplexity(log, bar, p_holds, p_breaks))
        if not self.base.logprobs.windows:
            return
        for each in others:
            if each.name not in known:
                gap = each.logprobs.gap or "no window was answered by it and by the baseline"
                decisions[each.name].append(
                    Decision(
                        name="perplexity",
                        verdict=Verdict.INCONCLUSIVE,
                        reason=f"its perplexity is not known: {gap}",
                    )
                )

    def _quality(
        self, found: Answered, base: Answered | None, decisions: Sequence[Decision]
    ) -> VariantQuality:
        question, floor = self.question, self.floor
        is_floor = floor is not None and found.name == floor.name
        likely = likelihood(
            found.logprobs,
            base.logprobs if base is not None else None,
            floor.logprobs if floor is not None and not is_floor else None,
            question.window_bytes,
            seed=question.seed,
            n_resamples=question.n_resamples,
        )
        delta = self.pooled(self.base, found) if base is not None else None
        score = self.score_of(self.base)
        loss = Estimate(value=0.0, low=0.0, high=0.0) if base is None and score else None
        if delta is not None and score is not None and score.value > 0:
            loss = _scaled(delta, -1 / score.value)
        verdict, reason = _overall(found, base, decisions)
        return VariantQuality(
            name=found.name,
            model=found.model,
            verdict=verdict,
            reason=reason,
            score=self.score_of(found),
            loss=loss,
            decisions=tuple(decisions),
            sets=tuple(self._set(key, found, base) for key in self.powers if key in found.sets),
            likelihood=likely,
            likelihood_gap=None if likely else found.logprobs.gap or "not asked yet",
            texts=found.texts,
        )

    def _set(self, key: tuple[str, Scoring], found: Answered, base: Answered | None) -> SetQuality:
        name, scoring = key
        tasks = next(each for each in self.question.sets if each.name == name)
        decides = tasks in self.counted and self.scorings[name] is scoring
        shown = alone(name, scoring, found.sets[key], self.powers[key], decides)
        if base is None:
            return shown
        floor_flips = None
        if self.floor is not None and found.name != self.floor.name and key in self.floor.sets:
            again = Pair.of(tasks, base.sets[key], self.floor.sets[key]).delta
            floor_flips = again.found.flips if again is not None else None
        seed = self.question.seed
        figures = paired_figures(tasks, base.sets[key], found.sets[key], floor_flips, seed)
        pair = Pair.of(tasks, base.sets[key], found.sets[key]).delta
        if pair is None:
            return shown
        accuracy = float(Pair.of(tasks, base.sets[key], found.sets[key]).first.mean())
        judged = judge_noninferiority(
            {name: pair}, accuracy, self.question.bar.margin, self.question.bar.alpha
        )[name]
        figures |= {"verdict": judged.verdict, "reason": judged.reason}
        return msgspec.structs.replace(shown, **figures)


def _overall(
    found: Answered, base: Answered | None, decisions: Sequence[Decision]
) -> tuple[Verdict, str]:
    if base is None and not decisions:
        return Verdict.PASS, "the baseline: the others are judged against it"
    if not decisions:
        return Verdict.INCONCLUSIVE, "nothing is decided of it"
    verdict = worst([each.verdict for each in decisions])
    reasons = [each.reason for each in decisions if each.verdict is verdict]
    if base is not None and not found.logprobs.windows:
        reasons.append(f"by accuracy alone: {found.logprobs.gap or 'no log-probabilities'}")
    return verdict, "; ".join(reasons)


def _of_failures(found: Answered) -> list[Decision]:
    """Of tasks and of log-probabilities each: many of one must not hide few of the other."""
    likely, sets = found.logprobs, found.sets.values()
    kinds = {
        "answers": (sum(e.n_failed for e in sets), sum(len(e.given) for e in sets)),
        "log-probabilities": (likely.n_failed, len(likely.windows) + len(likely.answers)),
    }
    return [
        Decision(
            name=kind,
            verdict=Verdict.ERROR,
            reason=f"{failed} of {failed + given} requests for {kind} got no answer: "
            "run the same command again",
        )
        for kind, (failed, given) in kinds.items()
        if failed > MAX_FAILED * (failed + given)
    ]


def _of_baseline(decision: Decision) -> Decision:
    """What is broken of the baseline is broken of all that is judged against it."""
    return msgspec.structs.replace(
        decision, name=f"baseline's {decision.name}", reason=f"the baseline: {decision.reason}"
    )


def _of_perplexity(log: Log, bar: QualityBar, p_holds: float, p_breaks: float) -> Decision:
    upper = log.upper(z_of(bar.alpha))
    ratio, most = capped_exp(log.mean), bar.max_perplexity_ratio
    at_most = "unknown" if upper is None else f"{capped_exp(upper):.4f}"
    if p_holds <= bar.alpha:
        verdict, why = Verdict.PASS, f"perplexity ratio at most {at_most}, {most:g} allowed"
    elif p_breaks <= bar.alpha:
        verdict, why = Verdict.FAIL, f"perplexity ratio {ratio:.4f}, {most:g} allowed"
    else:
        verdict = Verdict.INCONCLUSIVE
        why = f"perplexity ratio {ratio:.4f}, at most {at_most}, {most:g} allowed: more windows"
    return Decision(
        name="perplexity",
        verdict=verdict,
        reason=why,
        value=ratio,
        bound=None if upper is None else capped_exp(upper),
        limit=most,
        p_value=log.p_above(math.log(most)),
        p_adjusted=p_holds,
    )


def _scaled(delta: PairedDelta, factor: float) -> Estimate:
    low, high = sorted(factor * end for end in delta.interval)
    return Estimate(value=factor * delta.found.delta, low=low, high=high)


def _or_one(p_value: float | None) -> float:
    """What is not known rejects nothing."""
    return 1.0 if p_value is None else p_value
