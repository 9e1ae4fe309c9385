"""ROUGE and BLEU of generated texts by their standard packages, against one thing at a time."""

from collections.abc import Mapping, Sequence

import numpy as np

from serve_app.domain.quality import Estimate, TextQuality
from serve_app.evaluate.agreement import ratio_estimate
from serve_app.evaluate.statistics.bootstrap import RESAMPLES, mean_interval

BAND = (0.9, 1.1)
"""MLPerf's band of output lengths."""


def score_texts(
    outputs: Mapping[int, str],
    compared: Mapping[int, str],
    to: str,
    *,
    seed: int = 0,
    n_resamples: int = RESAMPLES,
) -> TextQuality | None:
    """Over the indices of both; None where there is none. `to`: `baseline` or `references`."""
    both = sorted(outputs.keys() & compared.keys())
    if not both:
        return None
    mine, theirs = [outputs[i] for i in both], [compared[i] for i in both]
    rouge1, rouge_l = _rouge(mine, theirs)
    bleu, signature = _bleu(mine, theirs)
    lengths = [np.array([float(len(text)) for text in each]) for each in (mine, theirs)]
    ratio = ratio_estimate(*lengths, seed=seed, n_resamples=n_resamples)
    return TextQuality(
        name="stories",
        to=to,
        n=len(both),
        rouge1=_mean(rouge1, seed, n_resamples),
        rouge_l=_mean(rouge_l, seed, n_resamples),
        bleu=Estimate(value=bleu),
        bleu_signature=signature,
        length_ratio=ratio,
        is_length_in_band=None if ratio is None else BAND[0] <= ratio.value <= BAND[1],
    )


def _rouge(mine: Sequence[str], theirs: Sequence[str]) -> tuple[list[float], list[float]]:
    """F-measures, text by text."""
    from rouge_score import rouge_scorer  # type: ignore[import-untyped]

    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"])
    found = [scorer.score(other, text) for text, other in zip(mine, theirs, strict=True)]
    return [each["rouge1"].fmeasure for each in found], [each["rougeL"].fmeasure for each in found]


def _bleu(mine: Sequence[str], theirs: Sequence[str]) -> tuple[float, str]:
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    score = metric.corpus_score(list(mine), [list(theirs)])
    return float(score.score), str(metric.get_signature())


def _mean(values: Sequence[float], seed: int, n_resamples: int) -> Estimate:
    array = np.array(values)
    low, high = mean_interval(array, seed=seed, n_resamples=n_resamples) or (None, None)
    return Estimate(value=float(array.mean()), low=low, high=high)
