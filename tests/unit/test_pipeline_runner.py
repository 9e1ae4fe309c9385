"""The runner: order, gates, what is kept, what is run again, and what a crash leaves behind."""

import copy
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from serve_app.domain.errors import ConfigError, EngineError
from serve_app.domain.verdict import Verdict
from serve_app.pipeline.evidence import sole_use
from serve_app.pipeline.pipeline_file import read_pipeline
from serve_app.pipeline.runner import Asked, Clock, run_pipeline
from serve_app.pipeline.state import read_state
from tests.fakes.pipeline_tools import FakeTools, Script
from tests.fakes.pipelines import pipeline, write_pipeline

STAGES = ["baseline", "measure", "int8", "validate-int8", "4-bit", "validate-4-bit", "recommend"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole run, to be copied and not changed."""
    folder = tmp_path_factory.mktemp("finished")
    found = Bench(folder)
    assert found.run().exit_status == 0
    return found


class Bench:
    """A pipeline file, the folder of its run, and its tools."""

    def __init__(self, folder: Path, script: Script | None = None) -> None:
        self.folder, self.out = folder, folder / "out"
        self.content = copy.deepcopy(pipeline())
        self.tools = FakeTools(folder / "models", script)

    def run(self, asked: Asked | None = None, **more):
        file = read_pipeline(write_pipeline(self.folder / "p.yaml", self.content))
        clock = Clock(monotonic=lambda: 0.0, utc=lambda: "2026-11-28T12:00:00+00:00")
        quiet = Console(quiet=True)
        self.tools.asked.clear()
        return run_pipeline(
            file, self.out, self.tools, asked or Asked(), console=quiet, clock=clock, **more
        )

    def stage(self, name: str) -> dict:
        return next(each for each in self.content["stages"] if each["name"] == name)

    @property
    def used(self) -> list[str]:
        return [tool for tool, _ in self.tools.asked]

    @property
    def state(self):
        return read_state(self.out)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_every_stage_runs_once_in_its_order(finished):
    assert list(finished.state.stages) == STAGES
    assert finished.state.running is None
    assert [what for tool, what in finished.tools.asked if tool == "make"] == [
        ("baseline",), ("int8",), ("gptq", "awq"),
    ]  # fmt: skip
    served = [what for tool, what in finished.tools.asked if tool in ("evaluate", "load")]
    assert served == [
        ("baseline",),
        ("baseline", "int8"),
        ("baseline", "int8", "gptq", "awq"),
        ("baseline", "int8", "gptq", "awq"),
    ]
    assert finished.tools.asked[-1] == ("recommend", "06-validate-4-bit")


def test_the_serve_files_hold_the_variants_at_hand(finished):
    from serve_app.config.serve_file import check_serve_file

    served = check_serve_file(finished.out / "06-validate-4-bit" / "serve.yaml")
    assert [each.name for each in served] == ["baseline", "int8", "gptq", "awq"]
    assert [each.engine.dtype for each in served] == ["bfloat16"] * 2 + ["float16"] * 2
    assert {each.engine.max_model_len for each in served} == {512}


def test_nothing_runs_twice(bench):
    bench.run()
    again = bench.run()
    assert bench.used == [] and again.exit_status == 0
    assert again.decision.kept == tuple(STAGES)


@pytest.mark.parametrize(
    ("script", "stopped_at", "status", "why"),
    [
        (Script(wrong=frozenset({"int8"})), "int8", 1, "correctness of int8"),
        (Script(quality={"int8": Verdict.FAIL}), "validate-int8", 1, "quality of int8"),
        (Script(quality={"awq": Verdict.FAIL}), "validate-4-bit", 1, "quality of awq"),
        (Script(quality={"int8": Verdict.INCONCLUSIVE}), "validate-int8", 3, "inconclusive"),
        (Script(quality={"int8": Verdict.ERROR}), "validate-int8", 3, "error"),
        (Script(misrouted=1), "validate-int8", 1, "1 misrouted of 60"),
        (Script(speed={"baseline": 40.0}), "measure", 1, "slo of baseline"),
        (Script(speed={"baseline": 1.0, "int8": 1, "gptq": 4.0, "awq": 1}), "validate-4-bit", 1,
         "latency of gptq"),
    ],
)  # fmt: skip
def test_it_stops_at_the_first_gate_that_is_not_passed(tmp_path, script, stopped_at, status, why):
    bench = Bench(tmp_path, script)
    result = bench.run()
    assert (result.decision.name, result.exit_status) == (stopped_at, status)
    assert why in result.decision.reason
    assert list(bench.state.stages) == STAGES[: STAGES.index(stopped_at) + 1]


def test_no_load_is_sent_to_what_failed_already(tmp_path):
    bench = Bench(tmp_path, Script(quality={"awq": Verdict.FAIL}))
    bench.run()
    assert bench.used.count("load") == 1  # the baseline's


def test_a_verdict_stands_until_an_input_changes_or_it_is_asked_for_again(tmp_path):
    bench = Bench(tmp_path, Script(quality={"int8": Verdict.FAIL}))
    bench.run()
    bench.tools.script.quality.clear()  # were it rolled again, it would pass
    assert bench.run().exit_status == 1 and bench.used == []
    assert bench.run(Asked(again=["validate-int8"])).exit_status == 0
    assert bench.used[:3] == ["staged", "split", "evaluate"]


def test_what_one_validation_asked_the_next_does_not_ask_again(finished):
    assert finished.tools.answered == [set(), {"baseline", "int8"}]


def test_asked_for_again_it_asks_everything_anew(bench):
    bench.run()
    bench.run(Asked(again=["validate-4-bit"]))
    assert bench.tools.answered[-1] == set()


def test_inconclusive_goes_on_where_the_file_says_so(tmp_path):
    bench = Bench(tmp_path, Script(quality={"int8": Verdict.INCONCLUSIVE}))
    assert bench.run().exit_status == 3
    for name in ("validate-int8", "validate-4-bit"):
        bench.stage(name)["on_inconclusive"] = "continue"
    result = bench.run()
    assert result.exit_status == 0
    assert "evaluate" in bench.used and bench.used[0] == "make"  # went on after the stage
    outcome = result.outcome("validate-int8")
    assert (outcome.verdict, outcome.is_accepted) == (Verdict.INCONCLUSIVE, True)
    opens = [each.variant for each in outcome.objections]
    assert opens == ["int8"]
    assert "open, as the file accepts: quality of int8 (validate-int8)" in result.decision.reason
    early = bench.run(Asked(stop_after="validate-int8"))
    assert early.decision.reason == (
        "asked to stop after validate-int8; 1 gate is open, as the file accepts: quality of int8 "
        "(validate-int8)"
    )


def test_another_bar_needs_no_new_measurement(bench):
    bench.run()
    bench.stage("4-bit")["gates"] = {"max_weights_ratio": 0.405}
    result = bench.run()
    assert bench.used == [] and result.exit_status == 1
    assert result.decision.name == "4-bit" and "memory of awq: fail" in result.decision.reason
    bench.stage("4-bit")["gates"] = {"max_weights_ratio": 0.41}
    assert bench.run().exit_status == 0 and bench.used == []


@pytest.mark.parametrize(
    ("change", "ran"),
    [
        (lambda b: b.stage("validate-4-bit").update(split={"requests": 50}), STAGES[5:]),
        (lambda b: b.stage("measure")["campaign"].update(seed=4), STAGES[1:]),
        (lambda b: b.content["engine"].update(max_model_len=256), STAGES[1:]),
        (lambda b: b.stage("recommend").update(goal="balanced"), STAGES[6:]),
        # what is measured again and comes out the same is the same input to what follows
        (lambda b: (b.out / "04-validate-int8/quality/quality.json").unlink(), STAGES[3:4]),
        (lambda b: (b.out / "02-measure/campaign/records.jsonl").write_text(""), STAGES[1:2]),
        (lambda b: (b.folder / "models/int8/manifest.json").unlink(), STAGES[2:3]),
    ],
)
def test_a_change_invalidates_a_stage_and_what_follows_from_it(bench, change, ran):
    bench.run()
    change(bench)
    before = dict(bench.state.stages)
    assert bench.run().exit_status == 0
    aside = sorted(path.name for path in (bench.out / "superseded").iterdir())
    assert aside == [f"{STAGES.index(name) + 1:02}-{name}.1" for name in ran]
    kept = [name for name in STAGES if name not in ran]
    assert all(bench.state.stages[name] == before[name] for name in kept)
    assert bench.run().exit_status == 0 and bench.used == []


def test_the_same_findings_again_leave_what_follows_alone(bench):
    """`int8` is made again, to the same bytes: nothing after it has another input."""
    bench.run()
    (bench.out / "03-int8/made.json").unlink()
    bench.run()
    assert bench.used == ["make"]


def test_a_stage_that_cannot_run_is_an_error_and_runs_again(tmp_path):
    bench = Bench(tmp_path, Script(raises={"staged": EngineError("not ready after 300 s")}))
    result = bench.run()
    assert (result.decision.name, result.exit_status) == ("measure", 1)
    assert "not ready" in result.decision.reason
    assert bench.state.stages["measure"].error == "not ready after 300 s"
    assert bench.run().exit_status == 0 and bench.used[0] == "staged"


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(143), RuntimeError("a bug")])
@pytest.mark.parametrize("tool", ["make", "staged", "evaluate", "load", "recommend"])
def test_what_is_cut_off_is_never_done(tmp_path, tool, ending):
    bench = Bench(tmp_path, Script(raises={tool: ending}))
    with pytest.raises(type(ending)):
        bench.run()
    cut = bench.state.running
    assert cut is not None and cut not in bench.state.stages
    n_done = len(bench.state.stages)
    assert list(bench.state.stages) == STAGES[:n_done] and cut == STAGES[n_done]
    assert bench.run().exit_status == 0
    assert list(bench.state.stages) == STAGES
    assert bench.used[0] == {"recommend": "recommend", "make": "make"}.get(tool, "staged")


def test_a_killed_process_leaves_the_stage_to_be_run_again(tmp_path):
    """As SIGKILL does: no handler of ours runs."""
    if (pid := os.fork()) == 0:  # pragma: no cover
        try:
            Bench(tmp_path, Script(before=lambda tool: tool == "evaluate" and os._exit(9))).run()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    bench = Bench(tmp_path)
    assert bench.state.running == "validate-int8" and list(bench.state.stages) == STAGES[:3]
    half = bench.out / "04-validate-int8" / "serve.yaml"
    assert half.is_file()
    assert bench.run().exit_status == 0 and bench.used[0] == "staged"
    assert (bench.out / "superseded/04-validate-int8.1/serve.yaml").is_file()


def test_stop_after_ends_there_and_goes_on_later(bench):
    result = bench.run(Asked(stop_after="int8"))
    assert (result.exit_status, list(bench.state.stages)) == (0, STAGES[:3])
    assert bench.run().exit_status == 0 and list(bench.state.stages) == STAGES
    with pytest.raises(ConfigError, match="--stop-after night: need one of baseline, measure"):
        bench.run(Asked(stop_after="night"))


def test_the_preflight_is_told_what_is_left_and_stops_before_anything_runs(bench):
    told = []

    def refuse(file, left):
        told.append([step.name for step in left])
        raise ConfigError("port 8000 is taken")

    with pytest.raises(ConfigError, match="port"):
        bench.run(Asked(stop_after="int8"), preflight=refuse)
    assert told == [STAGES[:3]] and bench.used == [] and bench.state is None
    bench.run()
    bench.run(preflight=refuse)  # nothing is left: nothing is checked
    assert len(told) == 1


def test_one_pipeline_per_folder(bench):
    with sole_use(bench.out), pytest.raises(ConfigError, match="another pipeline runs"):
        bench.run()
    assert bench.used == []


def test_a_folder_of_another_model_or_a_damaged_state_is_refused(bench):
    bench.run(Asked(stop_after="baseline"))
    bench.content["model"] = "other"
    with pytest.raises(ConfigError, match="holds a pipeline of m, not of other"):
        bench.run()
    bench.content["model"] = "m"
    for text, message in (("{", "no state"), ('{"schema": 9}', "need schema 1, have 9")):
        (bench.out / "state.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            bench.run()


def test_the_state_is_plain_json(finished):
    known = json.loads((finished.out / "state.json").read_bytes())
    assert known["stages"]["4-bit"]["findings"]["made"][1]["name"] == "awq"
    files = known["stages"]["validate-4-bit"]["files"]
    assert "06-validate-4-bit/quality/quality.json" in files
    assert not [name for name in files if name.endswith(".log")]
