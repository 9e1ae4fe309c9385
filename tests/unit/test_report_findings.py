"""What a reader is told first, and that it claims no more than the numbers do."""

import math
from dataclasses import replace

import msgspec
import pytest

from loadtests.analyse.nouns import Change, Comparison, Saturation, Verdict
from loadtests.records.manifest import RunFiles
from loadtests.records.record import CellPlan, RequestRecord, read_lines
from loadtests.report.findings import (
    clock_of,
    decisive,
    headlines,
    slo_reasons,
    status_line,
    trust_reasons,
    verdict_line,
)
from loadtests.report.result import read_result
from tests.fakes.run_folders import campaign, write_run, write_search


def comparison(p, ratio, change=Change.INCONCLUSIVE, variant="b", **changes):
    plain = {
        "stage": "s", "metric": "ttft_user_ms", "baseline": "a", "n_blocks": 5, "low": None,
        "high": None, "p_value": None, "p_sign_flip": None, "p_adjusted": None, "reason": "",
    }  # fmt: skip
    return Comparison(p=p, ratio=ratio, change=change, variant=variant, **(plain | changes))


def test_the_highest_percentile_that_has_a_ratio_is_shown_for_all_variants():
    shown = decisive(
        [
            comparison(0.50, 0.9),
            comparison(0.95, 0.8),
            comparison(0.99, None),
            comparison(0.50, 0.9, variant="c"),
            comparison(0.95, None, variant="c"),
            comparison(0.99, None, variant="c"),
        ]
    )
    assert [(each.p, each.variant) for each in shown] == [(0.95, "b"), (0.95, "c")]


def test_failures_that_reach_the_tail_are_a_finding_without_a_ratio():
    infinite = comparison(0.95, None, Change.WORSE, values=(50.0, math.inf))
    assert decisive([comparison(0.50, 1.0), infinite]) == (infinite,)


def test_metrics_come_in_the_order_of_importance_and_unknown_ones_do_not():
    speed = comparison(None, 1.1, metric="output_tokens_per_s")
    other = comparison(None, 1.1, metric="new_thing")
    first = comparison(0.50, 1.1)
    assert decisive([speed, other, first]) == (first, speed)
    assert decisive([]) == ()


ONE = {"name": "s", "kind": "poisson", "rate_per_s": 30, "duration_s": 3}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    plan = campaign(
        target={"model": "m", "variants": ["bf16", "fp8"], "baseline": "bf16"},
        stages=[ONE, ONE | {"name": "t"}],
        blocks=1,
        slo={"ttft_ms": 5000, "attainment": 0.9},
    )
    return read_result(write_run(tmp_path_factory.mktemp("findings") / "run", plan))


def with_comparisons(result, *comparisons):
    return replace(result, comparisons=comparisons)


def texts(result):
    return [line.text for line in headlines(result)]


def test_a_decided_change_is_told_whatever_its_percentile(result):
    found = with_comparisons(
        result,
        comparison(0.50, 1.25, Change.WORSE),
        comparison(0.95, 1.1),
        comparison(0.50, 1.2, Change.BETTER, metric="output_tokens_per_s"),
        comparison(0.50, 1.3, Change.WORSE, stage="t"),
        comparison(0.95, 0.7, Change.BETTER, stage="t"),
    )
    assert texts(found) == [
        "b is better than a: TTFT P95 0.70× (t), tok/s P50 1.20× (s)",
        "b is worse than a: TTFT P50 1.25× to 1.30×",
    ]


def test_only_where_nothing_is_decided_it_says_so_and_what_is_the_same(result):
    alike = comparison(0.50, 1.0, Change.SAME)
    assert texts(with_comparisons(result, alike, comparison(0.95, 1.1))) == [
        "b: no difference could be shown; the same within 5%: TTFT P50"
    ]
    share = comparison(None, None, Change.SAME, metric="error_rate", difference=0.0)
    assert texts(with_comparisons(result, share, comparison(0.95, 1.1))) == [
        "b: no difference could be shown; the same within 5% (shares 1 pp): failed"
    ]
    assert texts(with_comparisons(result, comparison(0.95, 1.1))) == [
        "b: no difference could be shown"
    ]
    assert texts(with_comparisons(result, alike)) == ["b: the same within 5% as a in all metrics"]


def test_a_change_from_or_to_failures_has_both_sides_where_it_has_no_ratio(result):
    healed = comparison(0.95, None, Change.BETTER, values=(math.inf, 30.0))
    assert texts(with_comparisons(result, healed)) == ["b is better than a: TTFT P95 ∞ → 30.0 ms"]
    broken = comparison(0.95, None, Change.WORSE, values=(30.0, math.inf))
    assert texts(with_comparisons(result, broken)) == ["b is worse than a: TTFT P95 ∞"]


def test_a_share_of_requests_is_told_in_points(result):
    failing = comparison(
        None, None, Change.WORSE, metric="error_rate", values=(0.0, 0.03), difference=0.03
    )
    assert texts(with_comparisons(result, failing)) == ["b is worse than a: failed +3 pp"]
    assert decisive([failing]) == (failing,)


def test_no_view_says_who_is_better_at_an_invalid_row(tmp_path):
    plan = campaign(
        target={"model": "m", "variants": ["bf16", "fp8", "int8<b>"], "baseline": "bf16"},
        stages=[ONE, ONE | {"name": "t"}],
        blocks=5,
    )
    folder = write_run(tmp_path / "run", plan)
    sound = read_result(folder)
    assert any("better" in text for text in texts(sound))

    # 50 ms late at `s` with `fp8`: the client's fault
    files = RunFiles(folder)
    late = {
        cell.index
        for cell in read_lines(files.cells, CellPlan)
        if (cell.stage, cell.variant) == ("s", "fp8")
    }
    records = [
        msgspec.structs.replace(r, t_sched_ns=r.t_sched_ns - 50_000_000) if r.cell in late else r
        for r in read_lines(files.records, RequestRecord)
    ]
    files.records.write_bytes(b"".join(msgspec.json.encode(r) + b"\n" for r in records))
    result = read_result(folder)
    assert result.verdict is Verdict.INVALID
    doubted = [each for each in result.comparisons if (each.stage, each.variant) == ("s", "fp8")]
    assert {each.change for each in doubted} == {Change.INCONCLUSIVE}
    assert all(each.reason.startswith("not to be trusted, fp8 is invalid: ") for each in doubted)
    assert any(each.ratio is not None for each in doubted)
    others = [each for each in result.comparisons if each not in doubted]
    assert others and not any(each.reason.startswith("not to") for each in others)
    about = [text for text in texts(result) if "fp8" in text]
    assert about[0].startswith("fp8 is better than bf16: ") and "(t)" in about[0]
    assert about[1:] == ["not to be trusted: fp8 against bf16 (s), fp8 is invalid"]

    lost = replace(result, problems=("a worker was lost",))
    assert texts(lost) == [
        f"not to be trusted: {name} against bf16, the run is invalid" for name in ("fp8", "int8<b>")
    ]


def saturation(verdict, **changes):
    plain = {
        "variant": "a", "highest_passed_per_s": 4.0, "lowest_failed_per_s": 4.4, "probes": (),
        "confirmed_pass_per_s": 4.0, "confirmed_fail_per_s": 4.4, "reason": "why",
    }  # fmt: skip
    return Saturation(verdict=verdict, **(plain | changes))


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    rates = {"bf16": (8.0, 27.0)}
    return read_result(write_search(tmp_path_factory.mktemp("findings") / "search", rates))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (saturation(Verdict.PASS), ""),
        (saturation(Verdict.PASS, confirmed_fail_per_s=6.0), " (not confirmed)"),
        (saturation(Verdict.PASS, confirmed_pass_per_s=None), " (not confirmed)"),
        (
            saturation(Verdict.INVALID, confirmed_fail_per_s=None),
            " (not to be trusted: why)",
        ),
    ],
)
def test_a_bracket_by_point_estimates_is_not_confirmed(search, found, said):
    found = replace(search, saturation=(found,))
    assert texts(found) == [f"a: the SLO holds at 4.00, not at 4.40 requests/s{said}"]


def test_a_search_that_the_client_spoiled_is_invalid_everywhere(search):
    fell_short = replace(
        search, saturation=(saturation(Verdict.PASS), saturation(Verdict.INVALID, variant="b"))
    )
    assert fell_short.verdict is Verdict.INVALID and not fell_short.is_valid
    assert status_line(fell_short) == "INVALID: the client fell short, not the server, with b"
    assert "b: why" in trust_reasons(fell_short)
    assert replace(search, saturation=(saturation(Verdict.PASS),)).is_valid


def test_a_reason_is_given_once(result):
    (row, *_) = result.summaries
    invalid = msgspec.structs.replace(
        row,
        is_valid=False,
        invalid_reasons=("lag",),
        slo_verdict=Verdict.INVALID,
        slo_reason="lag",
    )
    found = replace(result, summaries=(invalid,))
    assert trust_reasons(found) == ("s, bf16: lag",) and slo_reasons(found) == ()


@pytest.mark.parametrize(("gated", "said"), [(False, " (does not count)"), (True, "")])
def test_a_missed_slo_says_whether_it_counts(result, gated, said):
    (row, *_) = result.summaries
    missed = msgspec.structs.replace(row, slo_verdict=Verdict.FAIL, slo_reason="why")
    stages = tuple(s.model_copy(update={"gate": gated}) for s in result.campaign.stages)
    plan = result.campaign.model_copy(update={"stages": stages})
    found = replace(result, summaries=(missed,), campaign=plan)
    assert slo_reasons(found) == (f"s, bf16{said}: fail: why",)
    assert (
        verdict_line(found) == "PASS: no stage counts towards the SLO, and the numbers count"
    ) is (not gated)


@pytest.mark.parametrize(
    ("concurrency", "said"),
    [
        ((None, None), "from the planned send time"),
        ((4, None), "from the planned send time, in a closed loop from the send time"),
        ((4, 4), "from the send time: in a closed loop nothing is planned"),
    ],
)
def test_the_clock_of_a_closed_loop_is_another(result, concurrency, said):
    rows = tuple(
        msgspec.structs.replace(row, concurrency=n)
        for row, n in zip(result.summaries, concurrency, strict=False)
    )
    assert clock_of(replace(result, summaries=rows)) == f"Latencies in ms {said}"
