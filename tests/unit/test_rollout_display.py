"""What a terminal and a log show of a rollout."""

import io

import pytest
from rich.console import Console

from serve_app.rollout.judge import RolloutVerdict, Ruling, Standing, begin_step
from serve_app.rollouts.display import Display
from serve_app.rollouts.preview import show_plan
from serve_app.rollouts.state import RolloutState
from tests.fakes.rollouts import rollout_config


@pytest.fixture
def state():
    plan = rollout_config().to_plan()
    return RolloutState(
        digest="d",
        original_bp={"int8": 10_000, "gptq": 0},
        current_bp={"int8": 9000, "gptq": 1000},
        started_at="now",
        standing=begin_step(plan, Standing()),
    )


def shown(is_terminal: bool, *looks) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=160)
    with Display(rollout_config(), console) as display:
        for look in looks:
            display.show(*look)
    return file.getvalue()


def test_a_terminal_has_the_guards_the_reason_and_what_is_wrong_with_the_sources(state):
    ruling = Ruling(RolloutVerdict.CONTINUE, "within the margin is not shown of [errors]")
    text = shown(True, (state, ruling, ["metrics: no page [red]"]))
    for part in ("step 1 of 2", "gptq 1000", "ttft mean", "not shown of [errors]", "[red]"):
        assert part in text


def test_a_log_has_a_line_for_what_changed_not_one_for_each_look(state):
    go_on = Ruling(RolloutVerdict.CONTINUE, "too early")
    done = Ruling(RolloutVerdict.PROMOTE, "all shown")
    lines = shown(False, *[(state, go_on, [])] * 5, (state, done, [])).splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("promote: all shown")


def test_before_the_first_step_nothing_is_shown(state):
    before = RolloutState(digest="d", original_bp={}, current_bp={}, started_at="now")
    assert shown(False, (before, None, [])) == ""


def test_a_plan_says_what_would_happen_and_that_nothing_did():
    file = io.StringIO()
    show_plan(rollout_config(alpha=0.01), 0, Console(file=file, width=160))
    text = file.getvalue()
    for part in ("int8 to gptq", "10 %", "50 %", "non inferior", "mSPRT", "+20.0%", "reaches 100,"):
        assert part in text
    assert "Nothing was changed" in text
