import json
import math
import subprocess
import sys
import time

import pytest

from loadtests.campaign import parse_campaign
from loadtests.plan.cells import CLOSED_LOOP_POOL, Planner, input_files
from loadtests.plan.segments import segments
from loadtests.source import plan_cells
from serve_app.domain.errors import ConfigError
from serve_app.domain.units import NS_PER_S

SHORT = {"median": 20, "sigma": 0.5, "max": 60}
MIX = [{"name": "chat", "weight": 1, "input_tokens": SHORT, "output_tokens": SHORT}]
SYNTHETIC = {"prompts": {"kind": "synthetic", "mix": MIX}}
EVERY_DRAWN_KIND = [
    {"name": "even", "kind": "constant", "rate_per_s": 20, "duration_s": 2},
    {"name": "poisson", "kind": "poisson", "rate_per_s": 5.3, "duration_s": 4},
    {"name": "gamma", "kind": "gamma", "rate_per_s": 5, "burstiness": 0.3, "duration_s": 4},
    {"name": "ramp", "kind": "ramp", "from_per_s": 2, "to_per_s": 8, "duration_s": 4},
]


def raw_campaign(**changes: object):
    return {
        "target": {"model": "m", "variants": ["a", "b", "c"]},
        "workload": {"prompts": {"kind": "corpus"}, "max_tokens": [4, 9]},
        "stages": EVERY_DRAWN_KIND,
        "blocks": 3,
        "repeats": 2,
        "warmup_s": 1.0,
        "cooldown_s": 0.5,
        "seed": 3,
    } | changes


def campaign(**changes: object):
    return parse_campaign(raw_campaign(**changes), "test")


def waves(made, n_prompts=50):
    source = plan_cells(Planner(made, n_prompts))
    found = []
    while wave := source.next_cells(()):
        found.append(wave)
    assert sum(map(len, found)) == source.n_cells
    assert source.next_cells(()) == ()
    return found


def cells(made, n_prompts=50):
    return [cell for wave in waves(made, n_prompts) for cell in wave]


def test_a_block_gives_every_variant_the_same_requests_in_random_order():
    found = waves(campaign())
    assert [(wave[0].block, wave[0].stage) for wave in found] == [
        (block, stage["name"]) for block in range(3) for stage in EVERY_DRAWN_KIND
    ]
    assert [cell.index for wave in found for cell in wave] == list(range(3 * 4 * 2 * 3))
    orders = set()
    for wave in found:
        assert {(cell.block, cell.stage) for cell in wave} == {(wave[0].block, wave[0].stage)}
        assert {cell.requests for cell in wave} == {wave[0].requests}
        order = [(cell.variant, cell.repeat) for cell in wave]
        assert sorted(order) == [(v, r) for v in "abc" for r in range(2)]
        orders.add(tuple(order))
    assert len(orders) > 8
    assert any([r for _, r in order] != sorted(r for _, r in order) for order in orders)


def test_blocks_and_stages_ask_differently():
    requests = {cell.requests for cell in cells(campaign())}
    assert len(requests) == 3 * 4
    contents = [tuple(r.turns for r in each) for each in requests]
    assert len(set(contents)) == 3 * 4
    times = {tuple(r.offset_ns for r in each) for each in requests}
    assert len(times) == 3 * 3 + 1, "all but evenly spaced arrivals are drawn anew"


def test_a_blocks_requests_are_made_once():
    made = campaign()
    planner = Planner(made, 50)
    stage = made.stages[0]
    one, two = (planner.cell(i, stage, 2, i, variant) for i, variant in ((0, "a"), (1, "c")))
    assert one.requests is two.requests is planner.requests(stage, 2)
    assert (one.index, one.repeat, one.variant) == (0, 0, "a")
    assert (two.index, two.repeat, two.variant) == (1, 1, "c")


def test_a_search_can_plan_stages_of_its_own():
    search = {"duration_s": 4, "low_per_s": 1, "high_per_s": 9}
    made = campaign(stages=[], search=search, slo={"ttft_ms": 9}, blocks=1, repeats=1)
    stage = campaign().stages[1]
    faster = stage.model_copy(update={"rate_per_s": 9.0})
    planner = Planner(made, 50)
    for each, n in ((stage, 21), (faster, 36)):  # of one name: the rate tells them apart
        assert sum(r.phase == "measured" for r in planner.requests(each, 0)) == n


def test_every_kind_has_its_phases_and_its_exact_counts():
    counts = {"even": (20, 40, 10), "poisson": (5, 21, 3), "gamma": (5, 20, 2), "ramp": (2, 20, 4)}
    for cell in cells(campaign()):
        low, high = cell.window_ns
        assert low == NS_PER_S
        assert cell.window_s == (2.0 if cell.stage == "even" else 4.0)
        assert cell.end_ns == high + NS_PER_S // 2
        assert cell.concurrency is None
        offsets = [request.offset_ns for request in cell.requests]
        assert offsets == sorted(offsets)
        assert offsets[-1] < cell.end_ns
        assert all(r.phase == cell.phase_at(r.offset_ns) for r in cell.requests)
        assert all(4 <= r.max_tokens <= 9 for r in cell.requests)
        phases = [request.phase for request in cell.requests]
        found = tuple(phases.count(phase) for phase in ("warmup", "measured", "cooldown"))
        assert found == counts[cell.stage]
    assert {cell.stage: cell.rate_per_s for cell in cells(campaign())} == {
        "even": 20,
        "poisson": 5.3,
        "gamma": 5,
        "ramp": 5,
    }


def test_without_warmup_everything_is_measured():
    made = campaign(warmup_s=0, cooldown_s=0)
    for cell in cells(made):
        assert cell.window_ns == (0, cell.end_ns)
        assert {request.phase for request in cell.requests} == {"measured"}


def test_an_odd_start_of_the_window_keeps_phases_and_offsets_together():
    made = campaign(warmup_s=0.1 + 0.2, cooldown_s=1 / 3, workload=SYNTHETIC)
    for cell in cells(made, 0):
        assert all(r.phase == cell.phase_at(r.offset_ns) for r in cell.requests)


def test_an_arrival_just_before_the_end_is_not_rounded_onto_the_next_segment():
    made = campaign(warmup_s=0.3)
    warmup, measured, _ = segments(made, made.stages[0])
    assert warmup.offset_ns(math.nextafter(0.3, 0.0)) == measured.start_ns - 1
    assert measured.offset_ns(0.0) == measured.start_ns == warmup.end_ns == 300_000_000


def test_the_plan_follows_from_the_seed():
    assert cells(campaign()) == cells(campaign())
    other = cells(campaign(seed=4))
    assert all(
        one.requests != two.requests for one, two in zip(cells(campaign()), other, strict=True)
    )


SHOW = """
import hashlib, json, sys
from loadtests.campaign import parse_campaign
from loadtests.plan.cells import Planner
from loadtests.source import plan_cells
made = parse_campaign(json.loads(sys.argv[1]), "test")
source = plan_cells(Planner(made))
text = ""
while wave := source.next_cells(()):
    text += repr(wave)
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_the_plan_is_the_same_in_every_process():
    raw = raw_campaign(
        workload=SYNTHETIC
        | {
            "shared_prefix": {"share": 0.5, "tokens": 9, "groups": 2},
            "sessions": {"turns": [1, 4], "think_s": [0.1, 2]},
        }
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", SHOW, json.dumps(raw)],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert digests != {""}


def test_a_closed_loop_has_a_pool_and_no_times():
    stage = {"name": "c", "kind": "concurrency", "concurrency": 7, "duration_s": 2}
    made = cells(campaign(stages=[stage], workload=SYNTHETIC, blocks=2), 0)
    assert {cell.concurrency for cell in made} == {7}
    assert {cell.rate_per_s for cell in made} == {None}
    for cell in made:
        assert len(cell.requests) == CLOSED_LOOP_POOL
        assert {(r.offset_ns, r.phase) for r in cell.requests} == {(0, "measured")}
    assert made[0].requests != made[-1].requests


@pytest.fixture
def trace(tmp_path):
    """A request every 100 ms, for ten seconds; the third of each second failed."""
    path = tmp_path / "t.jsonl"
    lines = [
        {"timestamp": 100 * i, "input_length": 600 + i, "output_length": 0 if i % 10 == 2 else 5}
        | {"hash_ids": [0, i + 1]}
        for i in range(101)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"name": "t", "kind": "trace", "format": "mooncake", "path": str(path)}


def test_a_trace_is_played_through_warmup_window_and_cooldown(trace):
    trace |= {"duration_s": 2.0, "start_s": 1.0, "length_scale": 0.1, "max_input_tokens": 61}
    made = campaign(stages=[trace], workload={"prompts": {"kind": "trace"}})
    found = waves(made, 0)
    cell = found[0][0]
    assert cell.rate_per_s == 9.0  # 18 in 2 s: a tenth failed in the trace
    offsets_ms = [round(request.offset_ns / 1e6) for request in cell.requests]
    assert offsets_ms == [100 * i for i in range(35) if i % 10 != 2]
    assert all(r.phase == cell.phase_at(r.offset_ns) for r in cell.requests)
    assert {request.input_tokens for request in cell.requests} == {61}
    assert {request.max_tokens for request in cell.requests} == {1}
    assert Planner(made).notes() == (
        "t: 31 requests of the trace; 4 more are left out, as they failed when it was recorded; "
        "27 prompts and 0 answers are cut to the stage's maxima",
    )
    times = [[r.offset_ns for r in wave[0].requests] for wave in found]
    assert times[0] == times[1] == times[2]
    first_parts = [wave[0].requests[0].turns[0].parts[0] for wave in found]
    assert len(set(first_parts)) == 3, "the texts of a block are its own"
    assert {r.turns[0].parts[0] for r in cell.requests} == {first_parts[0]}


def test_sessions_of_a_trace_are_kept(tmp_path):
    path = tmp_path / "b.csv"
    path.write_text(
        "Timestamp,Session ID,Request tokens,Response tokens\n0,x,5,6\n1,,5,6\n9,y,5,6\n"
    )
    stage = {"name": "t", "kind": "trace", "format": "burstgpt", "path": str(path)}
    made = campaign(stages=[stage | {"duration_s": 3}], workload={"prompts": {"kind": "trace"}})
    assert [r.session for r in cells(made, 0)[0].requests] == ["x", None]


def test_a_campaign_that_cannot_be_planned_says_so_before_it_starts(trace):
    idle = {"name": "idle", "kind": "poisson", "rate_per_s": 0.1, "duration_s": 2}
    with pytest.raises(ConfigError, match=r"stage idle: need one or more requests .* have none"):
        plan_cells(Planner(campaign(stages=[EVERY_DRAWN_KIND[0], idle]), 1))
    quiet = trace | {"duration_s": 0.05, "start_s": 1.11}
    workload = {"prompts": {"kind": "trace"}}
    with pytest.raises(ConfigError, match="stage t: need one or more requests"):
        plan_cells(Planner(campaign(stages=[quiet], workload=workload, warmup_s=0, cooldown_s=0)))
    with pytest.raises(ConfigError, match=r"stage t: need 11\.5 s .* have 10 s"):
        plan_cells(Planner(campaign(stages=[trace | {"duration_s": 10}], workload=workload)))


def test_input_files_are_those_that_the_plan_is_made_from(trace):
    assert input_files(campaign()) == ()
    prompts = {"kind": "jsonl", "path": "/p.jsonl"}
    traces = [trace | {"name": name, "duration_s": 1} for name in "tu"]
    made = campaign(stages=traces, workload={"prompts": prompts, "max_tokens": [1, 2]})
    assert [str(path) for path in input_files(made)] == ["/p.jsonl", trace["path"]]


def test_planning_a_hundred_thousand_requests_takes_seconds():
    stage = {"name": "s", "kind": "gamma", "rate_per_s": 1000, "burstiness": 0.5}
    made = campaign(
        stages=[stage | {"duration_s": 100}],
        workload=SYNTHETIC | {"shared_prefix": {"share": 0.5, "tokens": 100, "groups": 4}},
        warmup_s=0,
        cooldown_s=0,
    )
    start = time.perf_counter()
    assert len(Planner(made).requests(made.stages[0], 0)) == 100_000
    took_s = time.perf_counter() - start
    print(f"100,000 requests in {took_s:.2f} s")
    assert took_s < 20
