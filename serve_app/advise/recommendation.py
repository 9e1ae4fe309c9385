"""The recommendation: the choice for all load levels and for each, the variant set, the split."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from serve_app.advise.candidates import Status, Terms, standings
from serve_app.advise.choice import Choice, choose
from serve_app.advise.evidence import Evidence
from serve_app.advise.explain import remarks, sentences
from serve_app.advise.pareto import dominator, pareto_front
from serve_app.advise.rankings import Crossing, Ranking, crossings, rank
from serve_app.domain.units import BP_TOTAL
from serve_app.domain.verdict import Verdict


@dataclass(frozen=True)
class Front:
    """The Pareto front of the variants that are not out, at some load levels."""

    levels: tuple[str, ...]
    axes: tuple[str, ...]
    variants: tuple[str, ...]
    dominated: Mapping[str, str]
    """Who is off the front, and who of the front dominates it."""


@dataclass(frozen=True)
class Recommendation:
    """What to serve, why, and what it rests on.

    pass: decided; fail: no variant qualifies; inconclusive: see `overall.next_steps`; error: the
    evidence is broken. Only a decided one has a variant set.
    """

    verdict: Verdict
    terms: Terms
    sentences: tuple[str, str]
    remarks: tuple[str, ...]
    overall: Choice
    by_level: tuple[Choice, ...]
    front: Front
    front_by_level: tuple[Front, ...]
    rankings: tuple[Ranking, ...]
    crossings: tuple[Crossing, ...]
    variant_set: tuple[str, ...] = ()
    """The chosen variant, then the one that stands in for it."""
    split_bp: Mapping[str, int] | None = None

    @property
    def chosen(self) -> str | None:
        """What to serve; None where that is not decided."""
        return self.overall.chosen if self.verdict is Verdict.PASS else None


def recommend(
    evidence: Evidence, terms: Terms, served: Collection[str] | None = None
) -> Recommendation:
    """The whole recommendation, from evidence alone. `served`: who can stand in; None: all."""
    overall = choose(evidence, terms)
    by_level = tuple(choose(evidence, replace(terms, levels=(level,))) for level in terms.levels)
    turns = crossings(evidence, terms.levels)
    verdict = Verdict.ERROR if evidence.broken else overall.verdict
    chosen = overall.chosen if verdict is Verdict.PASS else None
    variant_set = () if chosen is None else (chosen, *_stand_in(evidence, terms, chosen, served))
    return Recommendation(
        verdict=verdict,
        terms=terms,
        sentences=sentences(evidence, terms, overall),
        remarks=tuple(remarks(evidence, overall, by_level, turns)),
        overall=overall,
        by_level=by_level,
        front=front_at(evidence, terms, terms.levels),
        front_by_level=tuple(front_at(evidence, terms, (level,)) for level in terms.levels),
        rankings=tuple(rank(evidence, level.name) for level in evidence.levels),
        crossings=turns,
        variant_set=variant_set,
        split_bp=split_of(variant_set),
    )


def front_at(evidence: Evidence, terms: Terms, levels: tuple[str, ...]) -> Front:
    """The front at these levels, and who dominates those that are not on it."""
    at = replace(terms, levels=levels)
    names = [each.name for each in standings(evidence, at) if each.status is not Status.OUT]
    axes = evidence.axes(levels)
    kept = pareto_front(evidence, names, axes)
    off = {name: dominator(evidence, name, kept, axes) for name in names if name not in kept}
    dominated = {name: by for name, by in off.items() if by is not None}
    return Front(levels, tuple(map(str, axes)), kept, dominated)


def split_of(variant_set: tuple[str, ...]) -> dict[str, int] | None:
    """All traffic to the first; the others stand in for it. None for no variant."""
    if not variant_set:
        return None
    return {name: BP_TOTAL if i == 0 else 0 for i, name in enumerate(variant_set)}


def _stand_in(
    evidence: Evidence, terms: Terms, chosen: str, served: Collection[str] | None
) -> tuple[str, ...]:
    """The best of the others that qualify: a failing variant has somebody to fall back on."""
    left = [
        each
        for each in evidence.variants
        if each.name != chosen and (served is None or each.name in served)
    ]
    others = replace(evidence, variants=tuple(left))
    second = choose(others, terms).leader
    return () if second is None else (second,)
