"""From `quality.json` to evidence: verdicts, losses against the baseline, and every pair."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from serve_app.advise.contrasts import Contrast, Interval, judge_gain
from serve_app.advise.evidence import Quality
from serve_app.domain.errors import ConfigError
from serve_app.domain.quality import Estimate, Power, QualityReport, decode_report
from serve_app.domain.verdict import Verdict


@dataclass(frozen=True)
class Judged:
    """What an evaluation says of each variant, and of each pair."""

    model: str
    baseline: str
    quality: Mapping[str, Quality] = field(default_factory=dict)
    contrasts: tuple[Contrast, ...] = ()
    broken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_judged(path: Path, margin: float | None = None) -> Judged:
    """Relative losses of score within `margin` count as none; None: within the report's own bar.

    Raises ConfigError for what is no quality report.
    """
    try:
        report = decode_report(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    return judged_of(report, margin)


def judged_of(report: QualityReport, margin: float | None = None) -> Judged:
    """The evidence of a report."""
    quality = {
        each.name: Quality(each.verdict, each.reason, _interval(each.score), _interval(each.loss))
        for each in report.variants
    }
    margin = report.bar.margin if margin is None else margin
    return Judged(
        model=report.model,
        baseline=report.baseline,
        quality=quality,
        contrasts=tuple(_pairs(report, quality, margin)),
        broken=tuple(_broken(report)),
        notes=tuple(_notes(report)),
    )


def _interval(known: Estimate | None) -> Interval | None:
    return None if known is None else Interval(known.value, known.low, known.high)


def _pairs(
    report: QualityReport, quality: Mapping[str, Quality], margin: float
) -> Iterator[Contrast]:
    """Every pair: as the evaluation paired it by item, else by each one's loss.

    Of two losses the difference has the sum of both ends: wider than an interval of the pair
    itself would be, and it holds whenever theirs do.
    """
    for first, second in combinations(quality, 2):
        pair = report.pair(first, second)
        if pair is not None:
            gain = Interval(pair.gain.value, pair.gain.low, pair.gain.high)
            found = judge_gain(pair.first, pair.second, gain, margin, p_value=pair.p_adjusted)
            yield found
            continue
        a, b = quality[first].loss, quality[second].loss
        if a is not None and b is not None:
            low = None if a.high is None or b.low is None else b.low - a.high
            high = None if a.low is None or b.high is None else b.high - a.low
            yield judge_gain(first, second, Interval(b.value - a.value, low, high), margin)


def _broken(report: QualityReport) -> Iterator[str]:
    """Why nothing can be concluded: all is measured against the baseline."""
    known = report[report.baseline]
    if known.verdict is Verdict.ERROR:
        reason = known.reason or "no reason is given"
        yield f"the evaluation of the baseline {known.name} is broken: {reason}"


def _notes(report: QualityReport) -> Iterator[str]:
    if report.is_partial:
        yield "the evaluation is partial: it was stopped before its end"
    counted = [each for each in report[report.baseline].sets if each.decides]
    if counted and all(each.power is Power.CEILING for each in counted):
        yield (
            f"{report.baseline} answers (nearly) every question, so equal in score is not equal in "
            f"quality: only great damage shows{_damage(report)}"
        )


def _damage(report: QualityReport) -> str:
    """What log-probabilities tell where questions do not."""
    found = []
    for each in report.variants:
        agreement = each.likelihood.agreement if each.likelihood is not None else None
        moved = agreement.abs_delta_logprob if agreement is not None else None
        if moved is not None and each.name != report.baseline:
            found.append((moved.value, each.name))
    if not found:
        return ""
    shown = ", ".join(f"{name} {value:.4f}" for value, name in sorted(found))
    return f"; mean |log-probability - {report.baseline}'s| per token: {shown}"
