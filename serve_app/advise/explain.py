"""A choice in two sentences with its figures, and what else a reader should know."""

from collections.abc import Iterator

from serve_app.advise.candidates import Goal, Status, Terms
from serve_app.advise.choice import Choice
from serve_app.advise.contrasts import Contrast
from serve_app.advise.evidence import COST, MEMORY, Axis, Evidence, latency_at
from serve_app.advise.rankings import Crossing
from serve_app.advise.words import interval, listing, percent, ratio, size, times
from serve_app.domain.verdict import Verdict

_MOST_NAMED = 3
_WINS = {
    Goal.HIGHEST_QUALITY: "none is better in quality",
    Goal.CHEAPEST: "none is cheaper",
    Goal.MEMORY_BOUND: "none that fits is better in quality",
    Goal.BALANCED: "none has a better balance",
}


def sentences(evidence: Evidence, terms: Terms, choice: Choice) -> tuple[str, str]:
    """What is recommended and why, and the figures (or what to measure) behind it."""
    if evidence.broken:
        why = "; ".join(evidence.broken[:_MOST_NAMED])
        return f"The evidence cannot be used: {why}.", "Measure it again before you choose."
    if choice.chosen is not None:
        return _decided(terms, choice), _figures(evidence, terms, choice.chosen)
    if choice.verdict is Verdict.FAIL:
        why = "; ".join(choice.open_questions)
        return (
            f"No variant qualifies for {terms.goal}: {why}.",
            "Loosen the limit that the most of them miss, lower the load per replica, or make "
            "other variants (configs/quantize).",
        )
    return _undecided(terms, choice)


def _decided(terms: Terms, choice: Choice) -> str:
    qualify = [each.name for each in choice.standings if each.status is Status.OPEN]
    held = f"the SLO at {listing(choice.levels)}" if choice.levels else "every limit"
    has_bar = terms.quality_bar is not None
    bar = f" and the quality bar of {terms.quality_bar:.2%}" if has_bar else ""
    if len(qualify) == 1:
        return f"Serve {choice.chosen}: it is the only variant that surely holds {held}{bar}."
    text = (
        f"Serve {choice.chosen}: of the {len(qualify)} variants that hold {held}{bar}, "
        f"{_WINS[terms.goal]} beyond the margin"
    )
    if choice.equals:
        text += (
            f", and {listing(choice.equals)}, level with it in that, "
            f"{'is' if len(choice.equals) == 1 else 'are'} not better in what comes next"
        )
    return f"{text}."


def _undecided(terms: Terms, choice: Choice) -> tuple[str, str]:
    shown = "; ".join(choice.open_questions[:_MOST_NAMED])
    rest = len(choice.open_questions) - _MOST_NAMED
    more = f" (and {rest} more)" if rest > 0 else ""
    lead = f"{choice.leader} leads by the points" if choice.leader else "No variant is proven fit"
    steps = "; ".join(choice.next_steps[:_MOST_NAMED]) or "what the open questions name"
    return (
        f"The evidence does not decide {terms.goal}: {shown}{more}.",
        f"{lead}; measure next: {steps}.",
    )


def _figures(evidence: Evidence, terms: Terms, name: str) -> str:
    variant, parts = evidence[name], []
    quality = variant.quality
    if quality is not None and quality.score is not None:
        text = f"{percent(quality.score)} of the answers are right"
        if quality.loss is not None and name != evidence.baseline:
            text += f" (loss against {evidence.baseline} {percent(quality.loss)})"
        parts.append(text)
    for level in terms.levels:
        at = variant.at.get(level)
        if at is not None and at.latency_ms is not None:
            text = f"{evidence.metric} at {level} is {interval(at.latency_ms, ' ms')}"
            parts.append(text + _beside(evidence, latency_at(level), name))
    if variant.memory is not None:
        what = "weights" if variant.memory.need_bytes is None else "a replica"
        shown = size(variant.memory.compared_bytes)
        parts.append(f"{what} take {shown}".replace("replica take", "replica takes")
                     + _beside(evidence, MEMORY, name))  # fmt: skip
    if variant.cost_usd_per_million is not None:
        shown = interval(variant.cost_usd_per_million, " USD")
        parts.append(f"a million output tokens cost {shown}" + _beside(evidence, COST, name))
    text = ", ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if parts else "No figure is known of it."


def _beside(evidence: Evidence, axis: Axis, name: str) -> str:
    """` (0.62 [0.58, 0.66] of bf16)`; nothing of the baseline itself, or where it is not known."""
    contrast = evidence.contrast(axis, name, evidence.baseline)
    if contrast is None or contrast.gain is None:
        return ""
    return f" ({ratio(contrast)} of {evidence.baseline})"


def crossing_text(evidence: Evidence, each: Crossing) -> str:
    """That one choice for all loads is a compromise between these two."""
    return (
        f"{each.first} is faster than {each.second} at {each.faster_at} "
        f"({times(each.gain)} times) and slower at {each.slower_at} ({times(each.loss)} times) "
        f"in {evidence.metric}: no one order holds at every load"
    )


def remarks(
    evidence: Evidence, overall: Choice, by_level: tuple[Choice, ...], turns: tuple[Crossing, ...]
) -> Iterator[str]:
    """What the two sentences leave out: crossings, levels that would choose otherwise, notes."""
    out = {each.name for each in overall.standings if each.status is Status.OUT}
    met = [each for each in turns if not {each.first, each.second} & out]
    widest = sorted(met, key=lambda each: each.loss - each.gain)
    yield from (crossing_text(evidence, each) for each in widest[:_MOST_NAMED])
    if len(widest) > _MOST_NAMED:
        yield f"{len(widest) - _MOST_NAMED} more pairs change places between the load levels"
    for each in by_level:
        if each.chosen is not None and each.chosen != overall.chosen:
            yield f"at {listing(each.levels)} alone the choice would be {each.chosen}"
    for name in evidence.names:
        if evidence[name].gate is None and name != evidence.baseline:
            yield f"{name} has no record of the correctness gate"
    yield from evidence.notes


def contrast_text(each: Contrast) -> str:
    """One word: better, worse, same, not worse, not better, open."""
    if each.is_better:
        return "better"
    if each.is_worse:
        return "worse"
    if each.is_same:
        return "same"
    if each.is_not_worse:
        return "not worse"
    return "not better" if each.is_not_better else "open"
