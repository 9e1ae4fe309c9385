"""The controller: each change of the split is written down first, and nothing else changes it."""

import asyncio
import json

import msgspec
import pytest

from serve_app.domain.errors import ConfigError
from serve_app.rollouts.controller import Controller
from serve_app.rollouts.report import JSON, render_markdown, write_report
from serve_app.rollouts.state import (
    MOST_POINTS,
    Phase,
    Point,
    RolloutState,
    read_state,
    write_state,
)
from serve_app.splits.live_split import SplitChangedError, SplitUnreachableError
from tests.fakes.rollouts import FakeClock, FakeSplit, MadeUpEvidence, rollout_config

BEFORE = {"bf16": 4000, "int8": 6000, "gptq": 0}
AT_10, AT_50 = BEFORE | {"int8": 5400, "gptq": 600}, BEFORE | {"int8": 3000, "gptq": 3000}
PROMOTED = BEFORE | {"int8": 0, "gptq": 6000}


class CutError(Exception):
    """In place of a crash or Ctrl-C."""


def cut_off(state) -> None:
    raise CutError


class Rig:
    """A rollout whose parts a test can reach."""

    def __init__(self, folder, **changes) -> None:
        self.config = rollout_config(**changes)
        self.split = FakeSplit(BEFORE)
        self.evidence = MadeUpEvidence()
        self.clock = FakeClock()
        self.folder = folder
        self.on_look = lambda state: None
        self.states: list[RolloutState] = []

    @property
    def controller(self) -> Controller:
        return Controller(
            self.config, self.split, [self.evidence], self.folder, self.clock.clock, self._show
        )

    def _show(self, state, ruling, troubles) -> None:
        self.states.append(state)
        self.on_look(state)

    def run(self) -> RolloutState:
        return asyncio.run(self.controller.run("2026-11-28T00:00:00+00:00"))


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


def test_a_good_candidate_goes_up_step_by_step_and_others_keep_their_shares(rig):
    state = rig.run()
    assert rig.split.history == [AT_10, AT_50, PROMOTED]
    assert (state.phase, state.exit_status) == (Phase.PROMOTED, 0)
    assert [each.verdict for each in state.steps] == ["promote", "promote"]
    assert rig.evidence.begun == 2


def test_a_bad_candidate_is_rolled_back_to_exactly_what_was_there(rig):
    rig.evidence.traffic = {"error_rate": 0.5}
    state = rig.run()
    assert rig.split.history == [AT_10, BEFORE]
    assert (state.phase, state.exit_status) == (Phase.ROLLED_BACK, 1)
    assert "errors" in state.steps[-1].reason


def test_one_that_goes_bad_under_more_load_is_rolled_back_from_there(rig):
    def spoil(state):
        if state.standing.step == 1:
            rig.evidence.traffic = {"slower": 1.6}

    rig.on_look = spoil
    state = rig.run()
    assert rig.split.history == [AT_10, AT_50, BEFORE]
    assert state.phase is Phase.ROLLED_BACK


def test_no_traffic_ends_inconclusive_with_the_baseline(rig):
    rig.evidence = MadeUpEvidence(pairs_a_look=0)
    state = rig.run()
    assert rig.split.shares == BEFORE
    assert (state.phase, state.exit_status) == (Phase.INCONCLUSIVE, 3)
    assert rig.clock.now_s - 1000 >= 600


def test_evidence_that_ends_ends_the_rollout(rig):
    rig.evidence = MadeUpEvidence(most=120)
    state = rig.run()
    assert state.phase is Phase.INCONCLUSIVE
    assert "no more evidence" in state.steps[-1].reason


def test_cut_off_at_any_look_it_goes_on_and_ends_as_if_nothing_had_been(rig):
    cuts = 0

    def cut(state):
        nonlocal cuts
        cuts += 1
        raise CutError

    rig.on_look = cut
    for _ in range(200):
        try:
            state = rig.run()
            break
        except CutError:
            continue
    assert cuts > 5
    assert state.phase is Phase.PROMOTED
    assert rig.split.history == [AT_10, AT_50, PROMOTED]


@pytest.mark.parametrize("was_carried_out", [False, True])
def test_a_crash_between_writing_down_and_changing_is_made_good(rig, was_carried_out):
    def die(state):
        if state.pending is not None:
            if was_carried_out:
                rig.split.shares = dict(state.pending.shares_bp)
            raise RuntimeError

    rig.on_look = die
    with pytest.raises(RuntimeError):
        rig.run()
    rig.on_look = lambda state: None
    assert rig.run().phase is Phase.PROMOTED
    assert rig.split.shares == PROMOTED


def test_a_split_that_somebody_else_changed_is_left_alone(rig):
    def meddle(state):
        if state.standing.n_candidate >= 80:
            rig.split.shares = {"bf16": 10_000, "int8": 0, "gptq": 0}

    rig.on_look = meddle
    with pytest.raises(SplitChangedError, match="somebody else changed it"):
        rig.run()
    assert rig.split.shares["bf16"] == 10_000
    with pytest.raises(SplitChangedError):
        rig.run()


def test_a_meddler_is_noticed_while_a_step_lasts(rig):
    rig.evidence = MadeUpEvidence(pairs_a_look=0)

    def meddle(state):
        rig.split.shares = BEFORE | {"bf16": 3999, "int8": 6001}

    rig.on_look = meddle
    with pytest.raises(SplitChangedError):
        rig.run()
    assert rig.clock.now_s - 1000 < 60


def test_a_split_out_of_reach_is_no_reason_to_forget_what_was_decided(rig):
    def fall(state):
        rig.split.is_down = state.pending is not None

    rig.on_look = fall
    with pytest.raises(SplitUnreachableError):
        rig.run()
    rig.split.is_down = False
    rig.on_look = lambda state: None
    assert rig.run().phase is Phase.PROMOTED


def test_abort_puts_the_split_back_and_ends_the_rollout(rig):
    def stop(state):
        raise CutError

    rig.on_look = stop
    with pytest.raises(CutError):
        rig.run()
    assert rig.split.shares == AT_10
    rig.on_look = lambda state: None
    state = asyncio.run(rig.controller.abort())
    assert rig.split.shares == BEFORE
    assert (state.phase, state.exit_status) == (Phase.ABORTED, 1)
    with pytest.raises(ConfigError, match="is over: aborted"):
        asyncio.run(rig.controller.abort())


def test_abort_can_leave_a_split_that_is_no_longer_ours(rig):
    rig.on_look = cut_off
    with pytest.raises(CutError):
        rig.run()
    rig.split.shares = {"bf16": 0, "int8": 1, "gptq": 9999}
    with pytest.raises(SplitChangedError):
        asyncio.run(rig.controller.abort())
    state = asyncio.run(rig.controller.abort(keep_split=True))
    assert state.phase is Phase.ABORTED
    assert rig.split.shares["gptq"] == 9999


def test_nothing_to_abort_is_an_error(rig):
    with pytest.raises(ConfigError, match="nothing to abort"):
        asyncio.run(rig.controller.abort())


def test_a_rollout_that_is_over_stays_over(rig):
    first = rig.run()
    n_changes = len(rig.split.history)
    rig.split.shares = dict(BEFORE)
    assert rig.run() == first
    assert len(rig.split.history) == n_changes


def test_another_configuration_is_not_mixed_with_this_state(rig):
    rig.on_look = cut_off
    with pytest.raises(CutError):
        rig.run()
    rig.config = rollout_config(alpha=0.01)
    with pytest.raises(ConfigError, match="another configuration"):
        rig.run()


def test_a_candidate_that_is_not_served_changes_nothing(rig):
    rig.split = FakeSplit({"int8": 10_000})
    with pytest.raises(ConfigError, match="no gptq"):
        rig.run()
    assert rig.split.history == []
    assert read_state(rig.folder) is None


def test_a_damaged_state_is_said_to_be_one(tmp_path):
    (tmp_path / "state.json").write_text('{"digest": 3}')
    with pytest.raises(ConfigError, match="no state of a rollout"):
        read_state(tmp_path)


def test_the_state_is_on_the_disk_before_the_split_changes(rig):
    seen = []
    change = rig.split.change

    async def watched(expected, wanted):
        state = read_state(rig.folder)
        seen.append(state is not None and state.pending is not None)
        assert state.pending.shares_bp == wanted
        await change(expected, wanted)

    rig.split.change = watched
    rig.run()
    assert seen == [True, True, True]


def test_a_long_rollout_keeps_a_bounded_picture_with_its_newest_point(rig, tmp_path):
    state = rig.run()
    for n in range(3 * MOST_POINTS):
        state = state.with_point(Point(step=0, n=n, t_s=float(n), against=0.0))
    assert len(state.points) <= MOST_POINTS
    assert state.points[-1].n == 3 * MOST_POINTS - 1
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state


def test_the_report_says_what_was_decided_and_why(rig):
    rig.evidence.traffic = {"slower": 1.5}
    state = rig.run()
    written = write_report(rig.config, state, rig.folder)
    assert all(path.stat().st_size > 500 for path in written)
    content = json.loads((rig.folder / JSON).read_text())
    assert content["outcome"] == "rolled back"
    assert content["exit_status"] == 1
    assert content["points"][-1]["against"] > 1.3
    text = render_markdown(rig.config, state, None)
    assert "ttft mean: the candidate is worse" in text
    page = (rig.folder / "rollout.html").read_text()
    assert "<svg" in page and "rolled back" in page


def test_the_report_of_a_rollout_under_way_shows_its_step(rig):
    def stop(state):
        if state.standing.n_candidate >= 40:
            raise CutError

    rig.on_look = stop
    with pytest.raises(CutError):
        rig.run()
    state = read_state(rig.folder)
    assert "under way, in step 1 of 2" in render_markdown(rig.config, state, None)
    assert msgspec.json.decode(msgspec.json.encode(state), type=RolloutState) == state
