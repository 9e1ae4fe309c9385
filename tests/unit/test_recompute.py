"""Whole reports of folders with failures, long rows and repeats, against an independent program."""

import json
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from loadtests.records.manifest import Ending, EndReason
from loadtests.report.document import encode, report_of
from loadtests.report.result import read_result, read_run
from tests.fakes import recompute
from tests.fakes.run_folders import SPEED, FakeRun, campaign, write_run, write_search

VARIANTS = ["bf16", "int8<b>", "fp8"]
NS_PER_MS = 1_000_000


def both(folder: Path) -> tuple[dict, dict]:
    """The report of a folder, and what it should say."""
    result = read_result(folder)
    found = json.loads(encode(report_of(result)))
    return found, recompute.report(folder, result.campaign.model_dump(mode="json"))


def long_run(folder: Path) -> Path:
    """Six cells a row, two of each block, with more than 1,000 requests."""
    stage = {"name": "long", "kind": "poisson", "rate_per_s": 20, "duration_s": 9}
    plan = campaign(
        target={"model": "m", "variants": VARIANTS}, stages=[stage], blocks=3, repeats=2
    )
    run = FakeRun(folder, plan)
    run.write_manifest(18)
    for block in range(3):
        for variant in VARIANTS * 2:
            run.add_cell("long", block, variant, 20, 9)
    run.files.write_ending(Ending(reason=EndReason.COMPLETE))
    return folder


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    return long_run(tmp_path_factory.mktemp("long") / "run")


def test_a_run_with_failures_repeats_and_rare_percentiles(long):
    found, expected = both(long)
    assert recompute.differences(found, expected) == []
    bf16, int8, _ = found["summaries"]
    at = {q["p"]: q for q in int8["latencies"]["e2e_user_ms"]["with_failures"]}
    assert int8["n_planned"] > 1000 > int8["n_ok"] - 100 and int8["errors"]
    assert at[0.999]["value"] is None and "failed" in at[0.999]["reason"]
    assert bf16["latencies"]["e2e_user_ms"]["quantiles"][-1]["value"] is not None
    of = [each for each in found["comparisons"] if each["variant"] == "int8<b>"]
    tails = [each for each in of if each["p"] == 0.99]
    assert [each["values"][1] for each in tails] == [None, None]  # infinite
    assert all(each["noise_floor"] > 1 for each in of if each["p"] == 0.5)


def test_its_bootstrap_intervals_are_nearly_those_of_other_draws(long):
    """Each end lies where 0.5 to 5 % of the other draws lie beyond it."""
    found, _ = both(long)
    cells = recompute.cells_of(long)
    for i, (row, p) in enumerate((r, p) for r in found["summaries"][:2] for p in (0.5, 0.9)):
        series = [
            cell.values("e2e_user_ms", failed=False)
            for cell in cells
            if cell.plan["variant"] == row["variant"]
        ]
        draws = recompute.bootstrap(series, p, i)
        quantiles = row["latencies"]["e2e_user_ms"]["quantiles"]
        (q,) = [each for each in quantiles if each["p"] == p]
        assert draws[5] <= q["bootstrap_low"] <= draws[50], (row["variant"], p)
        assert draws[-51] <= q["bootstrap_high"] <= draws[-6], (row["variant"], p)


def test_a_short_run_of_few_cells(tmp_path):
    plan = campaign(target={"model": "m", "variants": VARIANTS}, blocks=3)
    found, expected = both(write_run(tmp_path / "run", plan))
    assert recompute.differences(found, expected) == []
    assert len(found["summaries"]) == 9 and len(found["comparisons"]) >= 6 * 8


UNANSWERED = {"t_first_ns": None, "t_last_ns": None, "event_us": (), "output_tokens": None}
REFUSED = UNANSWERED | {"error": "refused_by_client", "t_send_ns": None}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda r: {"output_tokens": (r.output_tokens or 1) - 1}, "invalid"),
        (lambda r: UNANSWERED | {"error": "connect"}, "fail"),
        (lambda r: {"t_send_ns": r.t_send_ns + 30 * NS_PER_MS}, "invalid"),
        (lambda r: REFUSED, "invalid"),
        (lambda r: UNANSWERED | {"error": "timeout"} if r.index % 3 else REFUSED, "fail"),
    ],
    ids=["short", "dead", "late", "full", "hung"],
)
def test_short_answers_dead_servers_and_clients_in_the_way(tmp_path, change, verdict):
    stage = {"name": "s", "kind": "poisson", "rate_per_s": 20, "duration_s": 3}
    plan = campaign(target={"model": "m", "variants": VARIANTS[:2]}, stages=[stage], blocks=2)
    run = read_run(write_run(tmp_path / "run", plan))
    records = [msgspec.structs.replace(r, **change(r)) for r in run.records]
    stays = Counter()
    for r in records:
        if r.t_send_ns is not None:
            stays[r.cell, r.worker] += r.t_end_ns - r.t_send_ns
    runs = [msgspec.structs.replace(r, in_flight_ns=stays[r.cell, r.worker]) for r in run.runs]
    for name, items in (("records", records), ("runs", runs)):
        lines = b"".join(msgspec.json.encode(each) + b"\n" for each in items)
        (run.folder / f"{name}.jsonl").write_bytes(lines)
    found, expected = both(run.folder)
    assert recompute.differences(found, expected) == []
    assert found["verdict"] == verdict


def test_a_search_and_its_brackets(tmp_path):
    found, expected = both(write_search(tmp_path / "run", dict.fromkeys(SPEED, (8.0, 27.0))))
    assert recompute.differences(found, expected) == []
    assert len(found["saturation"]) == 4
    assert any(each["lowest_failed_per_s"] for each in found["saturation"])


def test_a_difference_is_seen():
    expected = {"a": [1.0, None, float("inf")], "errors": {}, "b": "pass", "c": True}
    good = {"a": [1.0000001, None, None], "errors": {}, "b": "pass", "c": True, "more": 1}
    assert recompute.differences(good, expected) == []
    for wrong in (
        {"a": [1.1, None, None]}, {"a": [1.0, 0, None]}, {"a": [1.0, None, 3.0]}, {"a": [1.0]},
        {"errors": {"timeout": 1}}, {"b": "fail"}, {"c": None}, {"a": None},
    ):  # fmt: skip
        assert len(recompute.differences(good | wrong, expected)) == 1, wrong
