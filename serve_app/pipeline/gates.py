"""From what a stage found to its verdict: pure, so that a changed bar needs no new measurement."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from serve_app.domain.units import format_bytes
from serve_app.domain.verdict import Verdict
from serve_app.pipeline.findings import Findings, LatencyRatio, Load, MadeVariant, Split
from serve_app.pipeline.schema import LatencyBar, Make, Recommend, Stage, Validate

_GRAVEST = (Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)


@dataclass(frozen=True)
class GateResult:
    """One gate, asked of one variant (or of the stage as a whole: an empty `variant`)."""

    gate: str
    variant: str
    verdict: Verdict
    figure: str
    need: str
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a stage's gates say together."""

    verdict: Verdict
    gates: tuple[GateResult, ...]
    is_accepted: bool
    """Whether the pipeline goes on: passed, or open where the file accepts that."""

    @property
    def objections(self) -> tuple[GateResult, ...]:
        """The gates that were not passed, the gravest first."""
        open_ = [each for each in self.gates if each.verdict is not Verdict.PASS]
        return tuple(sorted(open_, key=lambda each: _GRAVEST.index(each.verdict)))


def gravest(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of them; none at all is inconclusive."""
    found = set(verdicts)
    return next((each for each in _GRAVEST if each in found), Verdict.INCONCLUSIVE)


def judge(stage: Stage, found: Findings, baseline: MadeVariant | None) -> Outcome:
    """The verdict on a stage's findings. `baseline` is None only while it is being made."""
    results = tuple(_results(stage, found, baseline))
    verdict = gravest(each.verdict for each in results)
    accepts = verdict is Verdict.INCONCLUSIVE and stage.on_inconclusive == "continue"
    return Outcome(verdict, results, verdict is Verdict.PASS or accepts)


def weights_ratio(variant: MadeVariant, baseline: MadeVariant) -> float:
    """Bytes of the weights' files over the baseline's."""
    return variant.weights_bytes / baseline.weights_bytes


def _results(stage: Stage, found: Findings, baseline: MadeVariant | None) -> Iterator[GateResult]:
    if isinstance(stage, Make):
        yield from _of_made(stage, found, baseline)
        return
    if isinstance(stage, Recommend):
        yield from _of_recommendation(found)
        return
    if isinstance(stage, Validate):
        yield from _of_quality(found)
        if stage.split is not None:
            yield _of_split(found.split)
    if stage.campaign is not None:
        yield from _of_load(found.load, needs_slo=stage.gates.slo)
        if stage.gates.latency is not None:
            yield from _of_latency(found, stage.gates.latency, baseline)


def _of_made(stage: Make, found: Findings, baseline: MadeVariant | None) -> Iterator[GateResult]:
    for each in found.made:
        passed = Verdict.PASS if each.passed else Verdict.FAIL
        yield GateResult(
            "correctness", each.name, passed, each.gate,
            "the engine computes what the weights say",
        )  # fmt: skip
        has_card = Verdict.PASS if each.card is not None else Verdict.FAIL
        yield GateResult("model card", each.name, has_card, each.card or "-", "a README.md")
        limit = stage.gates.max_weights_ratio
        if limit is None:
            continue
        need = f"at most {limit:g} of the baseline's weights"
        if baseline is None:
            yield GateResult("memory", each.name, Verdict.ERROR, "-", need, "no baseline")
            continue
        ratio = weights_ratio(each, baseline)
        verdict = Verdict.PASS if ratio <= limit else Verdict.FAIL
        figure = f"{ratio:.3f} ({format_bytes(each.weights_bytes)})"
        yield GateResult("memory", each.name, verdict, figure, need)


def _of_quality(found: Findings) -> Iterator[GateResult]:
    need = "quality of the baseline, within the bar"
    if not found.quality:
        yield GateResult("quality", "", Verdict.INCONCLUSIVE, "-", need, "nothing was evaluated")
        return
    for each in found.quality:
        figure = "-" if each.loss is None else f"loss {each.loss.value:+.2%}"
        if each.loss is not None and each.loss.low is not None and each.loss.high is not None:
            figure += f" [{each.loss.low:+.2%}, {each.loss.high:+.2%}]"
        yield GateResult("quality", each.name, each.verdict, figure, need, each.reason)


def _of_split(split: Split | None) -> GateResult:
    need = "every request is answered, by the variant that owns its session"
    if split is None:
        return GateResult("split", "", Verdict.INCONCLUSIVE, "-", need, "nothing was sent")
    figure = ", ".join(f"{each.variant} {each.served}" for each in split.shares)
    if split.n_failed or split.n_misrouted:
        why = (
            f"{split.n_failed} failed, {split.n_misrouted} misrouted of {split.n_requests}: "
            f"{split.first_fault}"
        )
        return GateResult("split", "", Verdict.FAIL, figure, need, why)
    unseen = [each.variant for each in split.shares if each.share_bp and not each.served]
    if unseen:
        why = f"no session of {split.n_requests} is of {', '.join(unseen)}: send more requests"
        return GateResult("split", "", Verdict.INCONCLUSIVE, figure, need, why)
    return GateResult("split", "", Verdict.PASS, figure, need)


def _of_load(load: Load | None, *, needs_slo: bool) -> Iterator[GateResult]:
    if load is None:
        yield GateResult("load", "", Verdict.INCONCLUSIVE, "-", "a campaign", "nothing was sent")
        return
    if load.verdict is Verdict.ERROR:
        yield GateResult("load", "", Verdict.ERROR, "-", "a valid campaign", load.reason)
        return
    gated = [row for row in load.rows if row.is_gated]
    need = "the campaign's SLO"
    if not needs_slo:
        yield _of_campaign(load)
        return
    if not gated:
        yield GateResult("slo", "", Verdict.INCONCLUSIVE, "-", need, "no load stage is gated")
    for row in gated:
        verdict = row.slo or Verdict.INCONCLUSIVE
        if not row.is_valid:
            verdict = Verdict.ERROR
        figure = f"E2E P95 {row.p95} ms, P99 {row.p99} ms at {row.load}"
        yield GateResult("slo", row.variant, verdict, figure, need, row.reason)


def _of_campaign(load: Load) -> GateResult:
    """Where no SLO is asked for, that it was measured is the gate."""
    figure, need = f"{len(load.rows)} rows", "a whole, valid campaign"
    invalid = [row for row in load.rows if not row.is_valid]
    if invalid:
        why = f"{invalid[0].variant} at {invalid[0].load}: {invalid[0].reason}"
        return GateResult("load", "", Verdict.ERROR, figure, need, why)
    verdict = Verdict.PASS if load.rows else Verdict.INCONCLUSIVE
    return GateResult("load", "", verdict, figure, need)


def _of_latency(
    found: Findings, bar: LatencyBar, baseline: MadeVariant | None
) -> Iterator[GateResult]:
    need = f"{bar.latency} at most {bar.max_ratio:g}x the baseline's"
    load = found.load
    if load is None or load.verdict is Verdict.ERROR:
        return  # said by the load gate
    gated = {row.stage for row in load.rows if row.is_gated}  # closed loops hide who waits
    names = dict.fromkeys(row.variant for row in load.rows if row.is_gated)
    known: Mapping[str, list[LatencyRatio]] = {
        name: [
            each
            for each in load.ratios
            if (each.variant, each.latency) == (name, bar.latency) and each.stage in gated
        ]
        for name in names
        if baseline is None or name != baseline.name
    }
    if not known:
        why = "no variant but the baseline was loaded at a gated stage"
        yield GateResult("latency", "", Verdict.INCONCLUSIVE, "-", need, why)
    for name, ratios in known.items():
        if not ratios:
            why = "too few requests to compare it"
            yield GateResult("latency", name, Verdict.INCONCLUSIVE, "-", need, why)
        for each in ratios:
            yield _latency_gate(each, bar, need)


def _latency_gate(each: LatencyRatio, bar: LatencyBar, need: str) -> GateResult:
    if each.ratio is None:
        return GateResult("latency", each.variant, Verdict.INCONCLUSIVE, "-", need, each.reason)
    ends = ", ".join("…" if end is None else f"{end:.2f}" for end in (each.low, each.high))
    figure = f"{each.ratio:.2f}x [{ends}] at {each.stage}"
    verdict, why = Verdict.INCONCLUSIVE, "the interval holds the bar: more blocks decide"
    if each.high is not None and each.high <= bar.max_ratio:
        verdict, why = Verdict.PASS, ""
    elif each.low is not None and each.low > bar.max_ratio:
        verdict, why = Verdict.FAIL, "slower than allowed, beyond doubt"
    return GateResult("latency", each.variant, verdict, figure, need, why)


def _of_recommendation(found: Findings) -> Iterator[GateResult]:
    need = "the evidence decides"
    known = found.recommended
    if known is None:
        yield GateResult("recommendation", "", Verdict.INCONCLUSIVE, "-", need, "none was made")
        return
    why = "; ".join(known.next_steps) if known.verdict is Verdict.INCONCLUSIVE else ""
    yield GateResult("recommendation", "", known.verdict, known.answer, need, why)
