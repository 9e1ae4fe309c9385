"""The campaigns that ship: they parse, they can be planned, and they hold what their text says."""

import json
import runpy
from pathlib import Path

import pytest
from scipy import stats

from loadtests.campaign import load_campaign
from loadtests.plan.cells import Planner, input_files
from loadtests.plan.context import check_lengths
from loadtests.plan.prompts import PromptBook, chat_body, load_prompts
from loadtests.source import plan_cells

FOLDER = Path(__file__).parents[2] / "configs" / "campaigns"
NAMES = ("smoke", "compare", "saturation", "soak", "burst", "replay")
VARIANTS = ("bf16", "int8", "gptq", "awq")
CONTEXT = 1024  # of configs/local.yaml


def shipped(name: str):
    return load_campaign(FOLDER / f"{name}.yaml").with_target(variants=VARIANTS)


def test_these_ship():
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_fits_the_context_of_the_local_engines(name):
    check_lengths(shipped(name), dict.fromkeys(VARIANTS, CONTEXT))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"saturation"}))
def test_every_stage_can_be_planned_and_supports_a_p99_and_its_slo(name):
    made = shipped(name)
    prompts = load_prompts(made.workload.prompts)
    planner, book = Planner(made, len(prompts)), PromptBook(prompts)
    for stage in made.stages:
        blocks = [planner.requests(stage, block) for block in range(made.blocks)]
        measured = [r for requests in blocks for r in requests if r.phase == "measured"]
        assert len(measured) > 100  # at 100 the P99 could be the second largest at best
        if stage.gate:
            assert lower_bound(len(measured)) >= made.slo.attainment
        for request in measured[:20]:
            body = chat_body(made.workload, "m@v", book.messages(request), request.max_tokens)
            assert all(message["content"] for message in json.loads(body)["messages"])
    assert plan_cells(Planner(made, len(prompts))).n_cells == len(VARIANTS) * made.blocks * len(
        made.stages
    )


def test_a_probe_of_the_search_supports_the_slo_even_at_the_lowest_rate():
    made = shipped("saturation")
    n = round(made.search.low_per_s * made.search.duration_s)
    assert lower_bound(n, n_looks=made.search.max_repeats) >= made.slo.attainment


def lower_bound(n: int, n_looks: int = 1) -> float:
    """Of a 95 % interval (Clopper-Pearson), where all of `n` requests met the limits; of one of
    `n_looks` looks that err in 5 % together.
    """
    return stats.beta.ppf(0.025 / n_looks, n, 1)


@pytest.mark.parametrize(
    ("name", "minutes"),
    [("smoke", 1), ("compare", 41), ("burst", 35.5), ("replay", 27.5), ("soak", 122)],
)
def test_it_takes_as_long_as_its_text_says(name, minutes):
    assert 0.8 * minutes <= shipped(name).planned_s(len(VARIANTS)) / 60 <= minutes


def test_a_search_takes_an_hour_at_most():
    assert shipped("saturation").planned_s(len(VARIANTS)) <= 3600


def test_six_blocks_where_variants_are_compared_by_their_tails():
    """Exact sign flips of n blocks cannot fall below 2 / 2^n."""
    assert all(2 / 2 ** shipped(name).blocks < 0.05 for name in ("compare", "burst", "replay"))


def test_a_soak_holds_conversations_in_its_window():
    made = shipped("soak")
    requests = Planner(made).requests(made.stages[0], 0)
    measured = [r for r in requests if r.phase == "measured"]
    later_turns = sum(len(r.turns) > 1 for r in measured)
    assert 0.3 < later_turns / len(measured) < 0.8


def test_the_trace_that_ships_is_the_one_its_script_makes():
    traces = FOLDER / "traces"
    made = runpy.run_path(str(traces / "make.py"))["lines"]()
    assert (traces / "synthetic.csv").read_text() == "\n".join(made) + "\n"
    assert input_files(shipped("replay")) == (traces / "synthetic.csv",)
