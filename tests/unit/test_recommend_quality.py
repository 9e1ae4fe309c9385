"""What is taken from a quality report."""

import msgspec
import pytest

from serve_app.domain.quality import Power
from serve_app.domain.verdict import Verdict
from serve_app.recommend.quality import judged_of
from tests.fakes.quality import quality_report

LOSSES = {"bf16": 0.0, "int8": 0.001, "awq": 0.03}


def contrast(judged, one, other):
    for each in judged.contrasts:
        if (each.first, each.second) == (one, other):
            return each
    raise KeyError((one, other))


def test_pairs_are_the_evaluations_own():
    judged = judged_of(quality_report(LOSSES))
    assert (judged.model, judged.baseline, list(judged.quality)) == ("m", "bf16", list(LOSSES))
    assert contrast(judged, "bf16", "int8").is_same
    found = contrast(judged, "int8", "awq")
    assert found.is_better and (found.gain, found.low) == pytest.approx((0.029, 0.028))


def test_a_difference_that_many_comparisons_explain_is_not_better():
    report = quality_report(LOSSES)
    lucky = tuple(msgspec.structs.replace(each, p_adjusted=0.2) for each in report.pairs)
    found = contrast(judged_of(msgspec.structs.replace(report, pairs=lucky)), "int8", "awq")
    assert not found.is_better and found.is_not_worse


def test_without_pairs_losses_are_compared_with_the_sum_of_their_ends():
    judged = judged_of(quality_report(LOSSES, pairs=()))
    found = contrast(judged, "int8", "awq")
    assert (found.gain, found.low, found.high) == pytest.approx((0.029, 0.027, 0.031))
    assert contrast(judged, "bf16", "awq").low == pytest.approx(0.029)


def test_the_margin_is_the_reports_bar_unless_another_is_given():
    report = quality_report(LOSSES)
    assert {each.margin for each in judged_of(report).contrasts} == {0.01}
    loose = judged_of(report, 0.05)
    assert contrast(loose, "bf16", "awq").is_same


def test_what_is_missing_is_missing():
    report = quality_report(LOSSES, pairs=())
    bare = msgspec.structs.replace(
        report.variants[2], score=None, loss=None, verdict=Verdict.INCONCLUSIVE
    )
    judged = judged_of(
        msgspec.structs.replace(report, variants=(*report.variants[:2], bare), is_partial=True)
    )
    assert judged.quality["awq"].loss is None
    assert [(each.first, each.second) for each in judged.contrasts] == [("bf16", "int8")]
    assert any("partial" in note for note in judged.notes)


def test_a_broken_baseline_breaks_it_all_and_another_variant_does_not():
    report = quality_report(LOSSES)
    for i, expected in ((0, 1), (1, 0)):
        variants = list(report.variants)
        variants[i] = msgspec.structs.replace(
            variants[i], verdict=Verdict.ERROR, reason="no tokens"
        )
        broken = judged_of(msgspec.structs.replace(report, variants=tuple(variants))).broken
        assert len(broken) == expected


def test_questions_that_are_too_easy_are_said_to_be():
    report = quality_report(LOSSES)
    first = report.variants[0]
    easy = tuple(msgspec.structs.replace(each, power=Power.CEILING) for each in first.sets)
    variants = (msgspec.structs.replace(first, sets=easy), *report.variants[1:])
    (note,) = judged_of(msgspec.structs.replace(report, variants=variants)).notes
    assert "only great damage shows" in note and "int8 0.0100, awq 0.3000" in note
