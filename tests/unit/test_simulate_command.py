"""`quantile simulate` as it is typed."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from serve_app.domain.errors import ConfigError
from serve_app.simulate.cli import app
from serve_app.simulate.outcome import Outcome
from serve_app.simulate.repeated import Answered, Load, repeated_lines, repeated_table
from serve_app.simulate.study import Answer
from serve_app.simulate.table import HARDLY

EXAMPLE = Path(__file__).parents[2] / "serve_app" / "simulate" / "example" / "curves.yaml"
SHORT = ["--stage", "1x10", "--stage", "6x20", "--stage", "1x20"]
LADDER = ["ladder", "--curves", str(EXAMPLE), "--rungs", "baseline,gguf-q4-k-m"]
SLO = ["--ttft-ms", "500"]
QUALITY = ["--quality", "baseline=1", "--quality", "gguf-q4-k-m=0.97"]


def run(*arguments, fails=False):
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    if fails:
        assert isinstance(done.exception, ConfigError), done.output
        return str(done.exception)
    assert done.exception is None, (done.output, done.exception)
    return done.output


def test_the_table_compares_and_the_words_say_what_it_means():
    text = run(*LADDER, *SLO, *QUALITY, *SHORT)
    for says in ("all on baseline", "ladder", "best in hindsight", "nothing exceeds", "turns"):
        assert says in text
    assert "times fewer" in text
    assert "150 requests" in text


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_it_draws(tmp_path, suffix):
    file = tmp_path / f"ladder.{suffix}"
    assert str(file) in run(*LADDER, *SLO, *QUALITY, *SHORT, "--out", file).replace("\n", "")
    assert file.stat().st_size > 10_000
    text = run(*LADDER, *SLO, *QUALITY, *SHORT, "--out", tmp_path / "none" / "a.png", fails=True)
    assert "cannot draw" in text


def test_json_has_the_same_and_nothing_else(tmp_path):
    found = json.loads(run(*LADDER, *SLO, *QUALITY, *SHORT, "--json"))
    fixed, ladder = found["policies"][:2]
    assert ladder["n_violations"] < fixed["n_violations"]
    assert sum(ladder["served"].values()) == 150
    assert found["shares_bp"][0] == [0.0, {"baseline": 10_000, "gguf-q4-k-m": 0}]
    assert set(found["view"]["rungs"]) == {"baseline", "gguf-q4-k-m"}


def test_the_ladder_of_a_file_is_that_of_the_serve_file(tmp_path):
    ladder = {"rungs": ["baseline", "gguf-q4-k-m"], "ttft_p95_ms": 500}
    file = tmp_path / "ladder.yaml"
    of_file = ["ladder", "--curves", EXAMPLE, "--config", file, *QUALITY, *SHORT, "--json"]
    outputs = []
    for content in (ladder, {"ladder": ladder}):
        file.write_text(yaml.safe_dump(content))
        outputs.append(run(*of_file))
    assert outputs[0] == outputs[1] == run(*LADDER, *SLO, *QUALITY, *SHORT, "--json")
    file.write_text(yaml.safe_dump(ladder | {"ttft_ms": 4}))
    assert "ttft_ms is not a known key" in run(*of_file, fails=True)
    file.write_text("[1]")
    assert "needs the keys of a ladder" in run(*of_file, fails=True)


def test_routers_replicas_and_one_device_change_the_answer():
    plain = run(*LADDER, *SLO, *QUALITY, *SHORT, "--json")
    for more in (["--router-replicas", "2"], ["--replicas", "gguf-q4-k-m=2"], ["--one-device"]):
        assert run(*LADDER, *SLO, *QUALITY, *SHORT, "--json", *more) != plain


def test_several_loads_are_told_with_their_ranges():
    one = ["--overload", "2", "--burst-s", "15", "--shape", "square"]
    command = [*LADDER, *SLO, *QUALITY, *one]
    text = run(*command, "--shape", "two", "--seed", "3", "--seeds", "2")
    for says in ("policy, 4 loads", "4 loads: square, two; seeds 3 to 4", "times fewer", "bound"):
        assert says in text
    found = json.loads(run(*command, "--seed", "3", "--seeds", "2", "--json"))["loads"]
    assert [(each["shape"], each["seed"]) for each in found] == [("square", 3), ("square", 4)]
    staged = run(
        *LADDER, *SLO, *QUALITY, *SHORT, "--shape", "two", "--shape", "ramp", "--seeds", "2"
    )
    assert "2 loads: stages; seeds 1 to 2" in staged
    # each of them is what that load alone gives
    alone = json.loads(run(*command, "--seed", "4", "--json"))
    assert {"shape": "square", "seed": 4, **alone} == found[1]


def test_the_median_of_several_loads_is_between_their_ends():
    answers = [answered(1.0, 90, 9), answered(0.9, 80, 8), answered(0.8, 50, 0)]
    lines = list(repeated_lines(answers))
    assert "3 loads: square; seeds 1 to 3; median (range)" in lines
    fewer = "times fewer SLO violations than fixed: 10.0 (10.0-inf); inf: no violation left"
    assert fewer in lines
    assert any("10.00 (0.00-20.00) %, 3 loads" in line for line in lines)
    assert row_of("ladder", answers) == ["ladder", "8.0 (0.0-9.0) %", "0.9000 (0.8000-1.0000)", "1"]


def test_the_best_in_hindsight_that_is_of_some_loads_says_so():
    answers = [answered(1.0, 90, 9), answered(0.9, 80, 8), answered(0.8, 50, 5)]
    answers[1] = replace(answers[1], answer=replace(answers[1].answer, hindsight=None))
    assert any("as rarely as the ladder did: 1" in line for line in repeated_lines(answers))
    assert row_of("hindsight", answers)[:2] == [
        "best in hindsight, 2 of the loads",
        "7.0 (5.0-9.0) %",
    ]
    none = [replace(each, answer=replace(each.answer, hindsight=None)) for each in answers]
    assert not any("lost against the best possible" in line for line in repeated_lines(none))


def test_on_one_device_the_ladder_that_hardly_helps_is_told_of_several_loads_too():
    slow = [answered(1.0, 90, 60), answered(0.9, 90, 50)]
    assert HARDLY in repeated_lines(slow, shares_device=True)
    assert HARDLY not in repeated_lines(slow)
    assert HARDLY not in repeated_lines([answered(1.0, 90, 9)], shares_device=True)


def row_of(policy: str, answers: list[Answered]) -> list[str]:
    """The cells of its row in the table."""
    console = Console(file=io.StringIO(), width=120)
    console.print(repeated_table(answers))
    row = next(line for line in console.file.getvalue().splitlines() if policy in line)
    return [cell.strip() for cell in row.split("  ") if cell]


def answered(quality: float, n_fixed: int, n_ladder: int) -> Answered:
    """A load of 100 requests; the seeds count up as the quality falls by tenths."""

    def one(name: str, n: int, value: float) -> Outcome:
        return Outcome(name, 100, n, value, {}, 0.1, None, 1)

    best = one("best in hindsight", n_ladder, 1.0)
    nothing: Any = None
    found = Answer(
        one("fixed", n_fixed, 1.0), one("ladder", n_ladder, quality), best, 1.0,
        nothing, nothing, {},
    )  # fmt: skip
    return Answered(Load("square", 1 + round(10 * (1 - quality))), found)


def test_a_recorded_trace_is_replayed(tmp_path):
    file = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:17:{s // 10:02}.{s % 10},10,20" for s in range(100)]
    file.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    text = run(*LADDER, *SLO, *QUALITY, "--trace", file, "--seconds", "5")
    assert "51 requests" in text


def test_curves_of_several_measurements_go_into_one_file(tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("curves: {fp8: {max_batch: 4, step_ms: {1: 5}}}")
    out = tmp_path / "all.yaml"
    text = run("curves", more, EXAMPLE, "--out", out)
    assert "fp8: step ms by batch {1: 5.0}" in text
    written = yaml.safe_load(out.read_text())
    assert {"fp8", "baseline"} <= set(written["curves"])
    assert written["made_by"] == f"quantile simulate curves {more} {EXAMPLE}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ladder", "--curves", EXAMPLE, *SLO, *QUALITY], "--config FILE, or by --rungs"),
        ([*LADDER, *QUALITY], "need an SLO to hold"),
        ([*LADDER, *SLO], "give the quality by"),
        ([*LADDER, *SLO, "--quality", "baseline=1"], "no quality is given for gguf-q4-k-m"),
        ([*LADDER, *SLO, "--quality", "baseline=good"], "write NAME=VALUE"),
        ([*LADDER, *SLO, "--quality-report", "/none.json"], "cannot read /none.json"),
        ([*LADDER, *SLO, "--quality", "baseline=0"], "need a number above 0"),
        ([*LADDER, *SLO, "--quality", "baseline=nan"], "need a number above 0"),
        ([*LADDER, *SLO, *QUALITY, "--replicas", "baseline=0"], "write NAME=N"),
        ([*LADDER, *SLO, *QUALITY, "--replicas", "fp8=2"], "the rungs are baseline, gguf-q4-k-m"),
        ([*LADDER, *SLO, *QUALITY, "--shape", "sine"], "known: square, ramp, two"),
        ([*LADDER, *SLO, *QUALITY, "--stage", "fast"], "is no stage"),
        ([*LADDER, *SLO, *QUALITY, "--seeds", "2", "--out", "a.png"], "one --shape and one seed"),
        ([*LADDER, *SLO, *QUALITY, "--seeds", "2", "--trace", "a.csv"], "one --shape and one seed"),
        (["ladder", "--curves", EXAMPLE, "--rungs", "bf16,int8", *SLO, *QUALITY], "no curve of"),
    ],
)
def test_wrong_arguments_say_what_to_change(arguments, says):
    assert says in run(*arguments, fails=True)


def test_help_has_examples():
    text = CliRunner().invoke(app, ["ladder", "--help"]).output
    assert "Examples:" in text
    assert "--quality-report" in text
