"""Service curves: read off measurements, kept in a file, and refused where they make no sense."""

import heapq
import json
import random
from pathlib import Path

import pytest

from loadtests.campaign import load_campaign, parse_campaign
from loadtests.records.manifest import SCHEMA_VERSION, Manifest, VariantFacts
from loadtests.records.record import CellPlan, CellRun, RequestRecord
from loadtests.report.result import RawRun
from serve_app.domain.errors import ConfigError
from serve_app.reference.speed import Result, Sample, result_to_json
from serve_app.simulate.curves import ServiceCurve, named, rising
from serve_app.simulate.engine import Engine, Job
from serve_app.simulate.measured import curves_of_run, read_curves, write_curves
from tests.fakes.run_folders import campaign

TRUE = ServiceCurve("bf16", ((1, 0.010), (4, 0.016), (8, 0.030)), prefill_s=0.02, max_batch=8)
EXAMPLE = Path(__file__).parents[2] / "serve_app" / "simulate" / "example"
NS = 1_000_000_000


def closed_loop(curve, users, seconds, index, max_num_seqs="8"):
    """What `quantile loadtest` would record of so many users and an engine with this curve."""
    rng, engine, records, events = random.Random(users), Engine(curve), [], []
    jobs = [Job(i, 0.0, rng.randint(16, 64)) for i in range(users)]
    for job in jobs:
        engine.take(job)
    heapq.heappush(events, engine.begin())
    while events and (now_s := heapq.heappop(events)) < seconds:
        for job in engine.end(now_s)[1]:
            records.append(record(job, index, len(records)))
            engine.take(Job(0, now_s, rng.randint(16, 64)))
        heapq.heappush(events, now_s + engine.begin())
    plan = CellPlan(
        index=index, stage=f"c{users}", block=0, repeat=0, variant="bf16", rate_per_s=None,
        concurrency=users, window_ns=(0, int(seconds * NS)), end_ns=int(seconds * NS),
        n_measured=0, start_ns=0,
    )  # fmt: skip
    run = CellRun(
        cell=index, worker=0, n_records=len(records), t_end_ns=int(seconds * NS), cpu_s=1.0,
        in_flight_ns=0, peak_in_flight=users,
    )  # fmt: skip
    return plan, run, records


def record(job, cell, index):
    at = {name: round(1e9 * s) for name, s in (
        ("t_sched_ns", job.arrived_s), ("t_send_ns", job.arrived_s), ("t_first_ns", job.first_s),
        ("t_last_ns", job.end_s), ("t_end_ns", job.end_s),
    )}  # fmt: skip
    return RequestRecord(
        cell=cell, index=index, phase="measured", variant="bf16", max_tokens=job.tokens,
        output_tokens=job.tokens, **at,
    )  # fmt: skip


def raw_run(cells, facts=None):
    plans, runs, records = zip(*cells, strict=True)
    plan = campaign(target={"model": "m", "variants": ["bf16"], "baseline": "bf16"})
    manifest = Manifest(
        schema_version=SCHEMA_VERSION, started_at="", host={}, campaign=plan,
        variants={"bf16": VariantFacts(replicas=1, facts=facts or {"max_num_seqs": "8"})},
    )  # fmt: skip
    everything = tuple(record for each in records for record in each)
    return RawRun(
        Path("reports/curves"), manifest, parse_campaign(plan, ""), None, plans, everything, runs,
        (), (),
    )  # fmt: skip


def test_the_curve_of_a_simulated_engine_is_found_again_from_its_records():
    levels = (1, 2, 4, 8, 16)  # sixteen users wait for eight places
    run = raw_run([closed_loop(TRUE, users, 60.0, i) for i, users in enumerate(levels)])
    (found,) = curves_of_run(run)
    assert found.max_batch == 8
    assert found.prefill_s == pytest.approx(TRUE.prefill_s, rel=0.1)
    for batch in (1, 2, 4, 8):
        # prompts of others come in between: about one per answer, so a step looks longer
        longer = (batch - 1) * TRUE.prefill_s / 40
        expected = TRUE.step_s(batch) + longer
        assert found.step_s(batch) == pytest.approx(expected, rel=0.12), batch


def test_an_engine_that_does_not_say_its_batch_has_the_largest_that_was_seen():
    (found,) = curves_of_run(raw_run([closed_loop(TRUE, 4, 30.0, 0)], {"engine": "other"}))
    assert found.max_batch == 4
    assert "other" in found.source


def test_a_run_that_is_too_short_is_refused():
    with pytest.raises(ConfigError, match=r"need 5 answers of bf16.*have 2 in all"):
        curves_of_run(raw_run([closed_loop(TRUE, 1, 1.2, 0)]))


def test_between_measured_batches_lies_a_line_and_beyond_them_too():
    assert TRUE.step_s(1) == 0.010
    assert TRUE.step_s(2) == pytest.approx(0.012)
    assert TRUE.step_s(6) == pytest.approx(0.023)
    assert TRUE.step_s(12) == pytest.approx(0.044)
    single = ServiceCurve("a", ((4, 0.02),), 0.0, 8)
    assert (single.step_s(1), single.step_s(8)) == (0.02, 0.02)


def test_the_rate_at_a_batch_is_that_of_its_steps_and_prompts():
    assert TRUE.rate_per_s(4, 40) == pytest.approx(1 / (40 * 0.016 / 4 + 0.02))
    assert TRUE.best_batch(40) == 8
    steep = ServiceCurve("a", ((1, 0.01), (4, 0.016), (8, 0.04)), 0.0, 8)
    assert steep.best_batch(40) == 4  # 8 at a time take more than twice as long as 4
    assert TRUE.best_batch(40, tpot_s=0.0135) == 2
    assert TRUE.best_batch(40, tpot_s=0.001) == 1


def test_times_that_fall_with_the_batch_are_averaged_by_their_counts():
    points = {1: (0.010, 10), 2: (0.014, 30), 4: (0.010, 10), 8: (0.020, 5)}
    assert rising(points) == ((1, 0.010), (2, pytest.approx(0.013)), (4, pytest.approx(0.013)),
                              (8, 0.020))  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "says"),
    [((), "at least one batch"), (((1, 0.02), (2, 0.01)), "take no less time"),
     (((1, 0.0),), "a step of 0 s"), (((0, 0.01),), "at least 1")],
)  # fmt: skip
def test_curves_that_make_no_sense_are_refused(steps, says):
    with pytest.raises(ConfigError, match=says):
        ServiceCurve("a", steps, 0.0, 8)


def test_a_file_of_curves_comes_back_as_it_was(tmp_path):
    write_curves(tmp_path / "curves.yaml", [TRUE], "a command")
    (found,) = read_curves(tmp_path / "curves.yaml")
    assert (found.steps, found.prefill_s, found.max_batch) == (TRUE.steps, 0.02, 8)
    assert "a command" in found.source
    with pytest.raises(ConfigError, match="cannot write"):
        write_curves(tmp_path / "none" / "curves.yaml", [TRUE], "")


def test_tokens_per_second_of_reference_speed_become_steps(tmp_path):
    samples = [
        Sample("a", block, batch, 32 * batch, s)
        for block in range(3)
        for batch, s in ((1, 0.32), (8, 0.64))
    ]
    facts = {"a": {"engine": "vllm 1"}}
    result = Result("a", "", 1, 32, 16, tuple(samples), facts, {}, {"cpu": "EPYC"})
    file = tmp_path / "speed.json"
    file.write_text(json.dumps(result_to_json(result)))
    (found,) = read_curves(file)
    assert found.steps == ((1, pytest.approx(0.01)), (8, pytest.approx(0.02)))
    assert found.source == "speed.json: vllm 1, EPYC"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", "{", "is no speed.json"),
        ("a.yaml", "curves: {a: {max_batch: 8}}", "step_ms is required"),
        ("a.yaml", "curves: {a: {max_batch: 8, step_ms: {1: -1}}}", "greater than 0"),
        ("a.yaml", "curve: {}", "curve is not a known key"),
    ],
)
def test_other_files_are_refused_with_their_name(tmp_path, name, text, says):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read_curves(file)
    assert str(file) in str(caught.value)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not the folder of a load run"):
        read_curves(tmp_path)


def test_a_variant_that_was_not_measured_is_named_with_those_that_were():
    with pytest.raises(ConfigError, match="no curve of fp8; measured: bf16"):
        named([TRUE], ["bf16", "fp8"])


def test_the_examples_are_what_the_documents_say():
    curves = {curve.variant: curve for curve in read_curves(EXAMPLE / "curves.yaml")}
    # decision 0015: 4.8 times as fast at batch 1, and slower at batch 8
    fast, dense = curves["gguf-q4-k-m"], curves["baseline"]
    assert dense.step_s(1) / fast.step_s(1) == pytest.approx(4.82, rel=0.02)
    assert fast.step_s(8) > dense.step_s(8)
    stages = load_campaign(EXAMPLE / "campaign.yaml").stages
    assert [stage.concurrency for stage in stages] == [1, 2, 4, 8, 16]
