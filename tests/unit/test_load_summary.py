"""Whole cells, rows and their validity, on records written by hand."""

import math

import msgspec
import numpy as np
import pytest

from loadtests.analyse import gaps
from loadtests.analyse.metrics import FORMULAS, LATENCIES, meets, meets_as_served
from loadtests.analyse.nouns import Verdict
from loadtests.analyse.summary import summarize
from loadtests.analyse.whole import shard_problems, whole_cells
from tests.fakes.load_cells import MS, campaign_of, failed_of, plan_of, record_of, run_of

CAMPAIGN = campaign_of()
PLAN = plan_of()


def rows(records, campaign=CAMPAIGN, plans=(PLAN,), runs=None, n_workers=1):
    return summarize(campaign, plans, records, runs or [run_of(records)], n_workers)


def test_latencies_of_one_request():
    values = {name: latency.of(record_of()) for name, latency in LATENCIES.items()}
    assert values == {
        "ttft_user_ms": 50,
        "ttft_service_ms": 48,
        "e2e_user_ms": 80,
        "e2e_service_ms": 78,
        "tpot_ms": 10,
        "ntpot_ms": 78 / 4,
        "stall_ms": 10,
        "lag_ms": 2,
    }
    assert set(values) < set(FORMULAS)


def test_what_is_not_defined_is_none():
    single = record_of(output_tokens=1, event_us=(0,))
    assert LATENCIES["tpot_ms"].of(single) is None
    assert LATENCIES["stall_ms"].of(single) is None
    assert LATENCIES["ntpot_ms"].of(single) == 78
    for name in ("tpot_ms", "ntpot_ms"):
        assert LATENCIES[name].of(record_of(output_tokens=None)) is None
    refused = failed_of(0, "refused_by_client", t_send_ns=None, t_end_ns=None)
    assert {latency.of(refused) for latency in LATENCIES.values()} == {None}


def test_slo_is_on_the_users_clock_and_failures_miss_it():
    slo = CAMPAIGN.slo
    assert meets(record_of(), slo)
    late = record_of(t_sched_ns=-20 * MS)  # served in 48 ms, waited for 70
    assert not meets(late, slo) and meets_as_served(late, slo)
    assert not meets(failed_of(0, "timeout"), slo)
    assert not meets(record_of(output_tokens=2), slo)  # TPOT 30 ms
    assert meets(record_of(output_tokens=1), slo)  # no TPOT to miss
    assert meets(record_of(output_tokens=0), slo)
    for judge in (meets, meets_as_served):
        assert not judge(record_of(output_tokens=None), slo)  # an unknown one is not a good one
    assert meets(record_of(output_tokens=None), campaign_of(slo={"ttft_ms": 60}).slo)
    assert meets(record_of(t_first_ns=60 * MS), slo)  # the limit itself is met


def test_a_whole_cell():
    (row,) = rows([record_of(i) for i in range(40)])
    assert (row.n_planned, row.n_ok, row.errors) == (20, 20, {})
    assert (row.rate_per_s, row.concurrency, row.window_s) == (10, None, 2)
    assert row.offered_per_s == row.achieved_per_s == row.goodput_per_s == 10
    assert (row.attainment.k, row.attainment.n, row.attainment.high) == (20, 20, 1)
    assert row.client_cpu_share == pytest.approx(0.1)
    assert (row.little_gap, row.peak_in_flight) == (0, 1)
    assert row.output_tokens_per_s == 40
    assert (row.output_tokens.value, row.input_tokens.value) == (4, None)
    ttft = row.latencies["ttft_user_ms"]
    assert (ttft.at(0.95).value, ttft.mean) == (50, 50)
    assert ttft.at(0.99).reason == "need n >= 100, have 20"
    assert ttft.with_failures == ttft.quantiles
    assert row.latencies["tpot_ms"].with_failures is None
    assert row.is_valid and row.notes == ()


def test_tokens_count_where_they_arrive_not_where_they_were_asked():
    late = record_of(9, event_us=(0, 50_000, 60_000, 70_000))  # planned at 0.9 s, window from 1 s
    (row,) = rows([late])
    assert row.output_tokens_per_s == 3 / 2
    (row,) = rows([record_of(9, event_us=(0, 60_000))])  # two tokens per event
    assert row.output_tokens_per_s == 2 / 2
    (row,) = rows([record_of(29, event_us=(0, 49_999, 50_000))])  # from 2.95 s, window until 3 s
    assert row.output_tokens_per_s == pytest.approx(2 * 4 / 3 / 2)


def test_failures_and_missing_records_are_infinite_and_out_of_the_slo():
    records = [record_of(i) for i in range(40) if i != 15]
    records[19] = failed_of(20, "truncated")
    (row,) = rows(records)
    assert (row.n_planned, row.n_ok, row.errors) == (20, 18, {"truncated": 1})
    assert (row.attainment.k, row.attainment.n) == (18, 20)
    aware = {q.p: q for q in row.latencies["e2e_user_ms"].with_failures}
    assert math.isinf(aware[0.95].value) and aware[0.9].value == 80
    assert row.latencies["e2e_user_ms"].at(0.5).value == 80
    assert msgspec.json.decode(msgspec.json.encode(aware[0.95]))["value"] is None
    assert not row.is_valid  # one request was never sent


@pytest.mark.parametrize(
    ("make", "changes", "reason"),
    [
        (lambda i: record_of(i, t_send_ns=i * 100 * MS + 11 * MS), {}, "lag P95 11.0 ms > 10 ms"),
        (lambda i: record_of(i, t_send_ns=i * 100 * MS + 3 * MS), {}, "lag P95 3.0 ms > 5%"),
        (record_of, {"cpu_s": 3.0}, "client CPU 75%"),
        (record_of, {"in_flight_ns": 10**9}, "Little's law is off by"),
        (record_of, {"in_flight_ns": 0}, "Little's law is off by 100.0%"),
        (record_of, {"clock_error_ns": 6 * MS}, "clock is known to 6.0 ms > 5 ms"),
        (
            lambda i: failed_of(i, "refused_by_client", t_send_ns=None, t_end_ns=None),
            {},
            "20 refused at in_flight_cap 128",
        ),
        (
            lambda i: record_of(i, max_tokens=4 + (i % 10 == 0)),
            {},
            "2 of 20 answers are not of the forced length",
        ),
        (lambda i: record_of(i, output_tokens=None), {}, "20 of 20 answers are not of the forced"),
    ],
)
def test_a_client_in_the_way_makes_the_row_invalid(make, changes, reason):
    records = [make(i) for i in range(40)]
    (row,) = rows(records, runs=[run_of(records, **changes)])
    assert not row.is_valid and row.slo_verdict is Verdict.INVALID
    assert any(reason in each for each in row.invalid_reasons), row.invalid_reasons
    assert reason in row.slo_reason


def refused(i):
    return failed_of(i, "refused_by_client", t_send_ns=None, t_end_ns=None)


@pytest.mark.parametrize("error", ["http_5xx", "connect", "timeout"])
def test_a_dead_server_fails(error):
    (row,) = rows([failed_of(i, error) for i in range(40)])
    assert (row.slo_verdict, row.is_valid, row.n_ok) == (Verdict.FAIL, True, 0)
    assert row.slo_reason.startswith("0% of 20 met it")


def test_a_server_that_hangs_fails_even_as_it_fills_the_client():
    hung = [failed_of(i, "timeout") if i < 24 else refused(i) for i in range(40)]
    (row,) = rows(hung)  # in the window 14 hang, and 6 are never sent
    assert (row.slo_verdict, row.is_valid) == (Verdict.FAIL, True)
    assert row.slo_reason == (
        "0% of 14 that were sent met it: at most 46.21% of 20 if the 6 others had, target 99%"
    )
    assert row.notes == ("sent 7.0/s of 10.0/s (6 refused at in_flight_cap 128)",)
    assert (row.attainment.k, row.errors["refused_by_client"]) == (0, 6)
    served = [record_of(i) if i < 24 else refused(i) for i in range(40)]
    (row,) = rows(served)  # what was sent was well served: the client alone fell short
    assert (row.slo_verdict, row.is_valid, row.notes) == (Verdict.INVALID, False, ())


def test_total_failure_is_invalid_where_no_verdict_tells_it():
    dead = [failed_of(i, "http_5xx") for i in range(40)]
    stage = {"name": "s", "kind": "constant", "rate_per_s": 10, "duration_s": 2, "gate": False}
    for campaign, verdict in (
        (campaign_of(slo=None), None),
        (campaign_of(stages=[stage]), Verdict.INVALID),
    ):
        (row,) = rows(dead, campaign)
        assert row.invalid_reasons == ("none of 20 requests succeeded",)
        assert row.slo_verdict is verdict


def test_lengths_that_are_not_forced_may_be_any():
    workload = {"prompts": {"kind": "corpus"}, "max_tokens": [4, 4], "forced_length": False}
    short = [record_of(i, max_tokens=9) for i in range(40)]
    assert rows(short, campaign_of(workload=workload))[0].is_valid
    failed = [failed_of(i, "timeout") if i == 15 else record_of(i) for i in range(40)]
    assert rows(failed)[0].is_valid  # a failure has no length


def test_the_clients_cpu_is_that_of_the_plan_and_not_of_the_drain():
    records = [record_of(i) for i in range(40)]
    (row,) = rows(records, runs=[run_of(records, cpu_s=3.0, t_end_ns=40 * 10**9)])
    assert row.client_cpu_share == 0.75 and not row.is_valid


def test_lag_that_could_pass_for_a_difference_is_a_note():
    records = [record_of(i, t_send_ns=i * 100 * MS + 3 * MS) for i in range(40)]
    limits = {"lag_share_of_ttft": 0.1}
    (row,) = rows(records, campaign_of(validity=limits))
    assert row.is_valid and row.notes == (
        "client lag P95 3.0 ms is 6% of TTFT P50: differences of TTFT below that are not the "
        "server's",
    )
    assert rows(records, campaign_of(validity=limits, same_within=0.1))[0].notes == ()


def test_the_lag_is_of_all_that_was_sent_and_the_worst_clock_counts():
    late = [failed_of(i, "timeout", t_send_ns=i * 100 * MS + 11 * MS) for i in range(11, 15)]
    records = [record_of(i) for i in range(40) if not 11 <= i < 15] + late
    (row,) = rows(records)
    assert (row.latencies["lag_ms"].at(0.5).n, row.latencies["lag_ms"].at(0.95).value) == (20, 11)
    shards = [[record_of(i, worker=w) for i in range(w, 40, 2)] for w in (0, 1)]
    errors = (6 * MS, 0)
    runs = [run_of(shards[w], worker=w, clock_error_ns=errors[w]) for w in (0, 1)]
    (row,) = rows([*shards[0], *shards[1]], runs=runs, n_workers=2)
    assert row.invalid_reasons == ("a worker's clock is known to 6.0 ms > 5 ms",)


def test_prompts_of_another_length_than_planned_are_a_note():
    def of(tokens):
        return [record_of(i, planned_input_tokens=100, prompt_tokens=tokens) for i in range(40)]

    assert rows(of(124))[0].notes == () == rows(of(81))[0].notes
    (row,) = rows(of(126))
    assert row.is_valid and row.notes == (
        "prompts had 1.26 times the planned tokens (median of 20)",
    )
    assert "0.79 times" in rows(of(79))[0].notes[0]


def test_a_closed_loop_counts_what_was_sent_in_the_window():
    plan = plan_of(concurrency=2, rate_per_s=None, n_measured=0)
    records = [record_of(i, t_sched_ns=i * 100 * MS + 2 * MS) for i in range(40)]
    (row,) = rows(records, plans=[plan])
    assert (row.n_planned, row.offered_per_s, row.concurrency) == (20, 10, 2)
    assert row.latencies["lag_ms"].at(0.5).value == 0
    assert row.is_valid
    assert row.notes == ("closed loop: latencies hide what waiting users would feel",)


def test_rows_come_in_the_order_of_the_campaign():
    campaign = campaign_of(
        ("b", "a"),
        stages=[
            {"name": name, "kind": "constant", "rate_per_s": 1, "duration_s": 2}
            for name in ("t", "s")
        ],
    )
    cells = [("s", "a"), ("t", "a"), ("s", "b"), ("t", "b"), ("s", "a")]
    plans = [plan_of(i, stage=s, variant=v, n_measured=1) for i, (s, v) in enumerate(cells)]
    records = [record_of(10, cell=i, variant=v) for i, (_, v) in enumerate(cells)]
    runs = [run_of([record], cell=record.cell) for record in records]
    found = rows(records, campaign, plans, runs)
    assert [(row.stage, row.variant) for row in found] == [
        ("t", "b"), ("t", "a"), ("s", "b"), ("s", "a"),
    ]  # fmt: skip
    assert [row.n_planned for row in found] == [1, 1, 1, 2]


def test_rows_of_a_search_rise_with_the_rate():
    search = {"duration_s": 2, "low_per_s": 2, "high_per_s": 20}
    campaign = campaign_of(stages=None, search=search)
    plans = [
        plan_of(i, stage=f"{r}rps", rate_per_s=float(r), n_measured=1)
        for i, r in enumerate((2, 20, 6))
    ]
    records = [record_of(10, cell=i) for i in range(3)]
    runs = [run_of([record], cell=record.cell) for record in records]
    found = rows(records, campaign, plans, runs)
    assert [row.stage for row in found] == ["2rps", "6rps", "20rps"]


def test_two_merged_workers_are_one():
    records = [record_of(i, worker=i % 2) for i in range(40)]
    shards = [[r for r in records if r.worker == worker] for worker in (0, 1)]
    runs = [run_of(shard, worker=worker) for worker, shard in enumerate(shards)]
    (merged,) = rows([*shards[1], *shards[0]], runs=runs, n_workers=2)
    (single,) = rows([msgspec.structs.replace(r, worker=0) for r in records])
    assert merged == msgspec.structs.replace(single, peak_in_flight=2)
    assert shard_problems([PLAN], records, runs, 2, is_complete=True) == ()


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda records, runs: (records[:-1], runs), "worker 1: lost records, 19 of 20"),
        (lambda records, runs: (records, runs[:1]), "no word from worker 1"),
        (lambda records, runs: ([*records, records[0]], runs), "1 requests with more than one"),
        (lambda records, runs: ([*records, records[0]], runs), "worker 0: 21 records for 20"),
        (lambda records, runs: ([*records, record_of(1, cell=7)], runs), "cell 7: records, but no"),
        (lambda records, runs: (records, [*runs, runs[0]]), "worker 0 ended it 2 times"),
        (
            lambda records, runs: (
                [msgspec.structs.replace(r, phase="warmup") for r in records],
                runs,
            ),
            "0 records of 20 planned requests",
        ),
    ],
)
def test_shards_that_do_not_fit_are_told_and_do_not_count(break_it, problem):
    good = [record_of(i, worker=i % 2) for i in range(40)]
    both = [run_of([r for r in good if r.worker == w], worker=w) for w in (0, 1)]
    records, runs = break_it(good, both)
    problems = shard_problems([PLAN], records, runs, 2, is_complete=True)
    assert any(problem in each for each in problems), problems
    if "records for" in problem or "lost" in problem or "no word" in problem:
        assert whole_cells([PLAN], records, runs, 2) == ()


def test_cells_that_a_stop_left_unfinished_are_no_problem_of_the_shards():
    record = record_of()
    assert rows([record], runs=[run_of([record], cell=9)]) == ()
    assert shard_problems([PLAN], [record], [], 1, is_complete=False) == ()
    assert shard_problems([PLAN], [record], [], 1, is_complete=True) != ()


def test_each_worker_of_a_closed_loop_numbers_its_own():
    plan = plan_of(concurrency=2, rate_per_s=None, n_measured=0)
    records = [record_of(i, worker=w) for w in (0, 1) for i in range(20)]
    runs = [run_of([r for r in records if r.worker == w], worker=w) for w in (0, 1)]
    assert shard_problems([plan], records, runs, 2, is_complete=True) == ()


def test_pooled_gaps_weigh_by_tokens():
    one = record_of(event_us=(0, 10_000, 40_000), output_tokens=3)  # 1 token per event
    two = record_of(event_us=(0, 20_000), output_tokens=4)  # 2 tokens per event
    values, weights = gaps.itl_ms(
        [one, two, record_of(event_us=(0,)), record_of(output_tokens=None)]
    )
    assert values.tolist() == [10, 30, 10] and weights.tolist() == [1, 1, 2]
    itl = gaps.summary_of((values, weights), (0.5, 0.75, 0.9))
    assert [q.value for q in itl.quantiles] == [10, 10, None]
    assert (itl.mean, itl.quantiles[0].n) == (15, 4)
    assert "depend" in itl.quantiles[0].note
    assert gaps.icl_ms([one, two])[0].tolist() == [10, 30, 20]
    none = gaps.summary_of(gaps.icl_ms([]))
    assert none.mean is None and none.quantiles[0].reason == "need n >= 1, have 0"


@pytest.mark.parametrize("n", [1, 10, 20, 199, 1000])
def test_gaps_of_one_token_each_are_nearest_rank(n):
    values = np.random.default_rng(n).exponential(size=n)
    found = gaps.summary_of((values, np.ones(n)))
    for q in found.quantiles:
        if q.value is not None:
            assert q.value == np.quantile(values, q.p, method="inverted_cdf")
    repeated = gaps.summary_of((values, np.full(n, 3.0)), (0.5,))
    thrice = np.percentile(np.repeat(values, 3), 50, method="inverted_cdf")
    assert repeated.quantiles[0].value == thrice
