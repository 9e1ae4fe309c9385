"""Quality reports of evaluations that never ran."""

from collections.abc import Mapping
from typing import Any

import msgspec

from serve_app.domain.quality import (
    Agreement,
    Estimate,
    Likelihood,
    PairQuality,
    Power,
    Provenance,
    QualityBar,
    QualityReport,
    Scoring,
    SetQuality,
    VariantQuality,
    pairs_of,
)
from serve_app.domain.verdict import Verdict

SCORE = 0.9
PROVENANCE = Provenance(
    base_url="http://127.0.0.1:8000/v1", created_at="2026-11-28T12:00:00+00:00", versions={},
    engines={}, sets=(), windows_digest=None, window_tokens=512, top_k=20, seed=1,
    n_resamples=2000, concurrency={},
)  # fmt: skip


def quality_report(
    losses: Mapping[str, float], *, width: float = 0.001, model: str = "m", **changes: Any
) -> QualityReport:
    """The first variant is the baseline; `width` is half of each interval, of pairs too."""
    baseline = next(iter(losses))
    return msgspec.structs.replace(
        QualityReport(
            model=model, baseline=baseline, bar=QualityBar(), is_partial=False,
            variants=tuple(
                _variant(name, model, loss, 0.0 if name == baseline else width)
                for name, loss in losses.items()
            ),
            pairs=tuple(_pair(one, other, losses, width) for one, other in pairs_of(tuple(losses))),
            provenance=PROVENANCE,
        ),
        **changes,
    )  # fmt: skip


def _variant(name: str, model: str, loss: float, width: float) -> VariantQuality:
    is_baseline = width == 0
    score = SCORE * (1 - loss)
    return VariantQuality(
        name=name, model=f"{model}@{name}", verdict=Verdict.PASS, reason="within the bar",
        score=Estimate(value=score, low=score - 0.01, high=score + 0.01),
        loss=Estimate(value=loss, low=loss - width, high=loss + width),
        sets=(SetQuality(name="facts", scoring=Scoring.GREEDY, n=1000, n_failed=0, decides=True,
                         accuracy=Estimate(value=score), power=Power.INFORMATIVE),),
        likelihood=Likelihood(
            n_tokens=1000, n_windows=4, perplexity=Estimate(value=5.0), bits_per_byte=None,
            agreement=None if is_baseline
            else Agreement(abs_delta_logprob=Estimate(value=10 * loss)),
        ),
    )  # fmt: skip


def _pair(one: str, other: str, losses: Mapping[str, float], width: float) -> PairQuality:
    gain = losses[other] - losses[one]
    p = 0.001 if abs(gain) > width else 0.5
    estimate = Estimate(value=gain, low=gain - width, high=gain + width)
    return PairQuality(first=one, second=other, n=1000, gain=estimate, mcnemar_p=p, p_adjusted=p)
