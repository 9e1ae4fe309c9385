"""`quantile eval` as a command, over a socket, against the fake engine."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from serve_app.domain.errors import ConfigError
from serve_app.domain.quality import decode_report
from serve_app.domain.verdict import Verdict
from serve_app.evaluate.cli import evaluate
from serve_app.evaluate.harness import (
    Harness,
    command,
    require_harness,
    results_in,
    write_local_tasks,
)

app = typer.Typer()
app.command()(evaluate)


def invoke(*args: str):
    return CliRunner().invoke(app, args)


@pytest.fixture
def tasks(tmp_path) -> Path:
    path = tmp_path / "mine.jsonl"
    rows = [
        {"question": f"q{i}", "answer": f"alpha {i}", "choices": [f"alpha {i}", f"beta {i}"]}
        for i in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_quick_look_from_the_command_line(fake_server, tmp_path, tasks):
    base_url = fake_server("m@bf16", "m@w4", "m", ttft_ms=1, itl_ms=0, output_tokens=2)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Words of paragraph {i}, one after the other." for i in range(30)))
    out = tmp_path / "out"
    args = ["--base-url", base_url, "--quick", "--set", str(tasks), "--text", str(text)]
    done = invoke(*args, "--window-tokens", "64", "--out", str(out))
    assert done.exit_code == 3, done.output  # 60 items cannot decide
    report = decode_report((out / "quality.json").read_bytes(), "q")
    assert not report.is_partial
    assert [each.name for each in report.variants] == ["bf16", "w4"]
    w4 = report["w4"]
    # one engine answers to both names
    assert w4.likelihood.agreement.kl_mean.value == 0
    assert w4.likelihood.perplexity_ratio.value == pytest.approx(1)
    greedy = next(each for each in w4.sets if each.scoring == "greedy")
    assert greedy.power == "floor"  # the fake engine knows nothing
    assert w4.verdict is Verdict.INCONCLUSIVE
    for name in ("quality.md", "quality.html", "outputs.html"):
        assert "w4" in (out / name).read_text()


def test_an_endpoint_that_is_not_there_is_named(tmp_path):
    done = invoke("--base-url", "http://127.0.0.1:9/v1", "--quick", "--out", str(tmp_path))
    assert "does not list its models" in str(done.exception)


def test_the_harness_is_asked_for_by_name_where_it_is_missing(tmp_path):
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    with pytest.raises(ConfigError, match=r"lm-eval\[api\]"):
        require_harness(bare)
    with pytest.raises(ConfigError, match="does not start"):
        require_harness(tmp_path / "none")


def test_the_harness_is_given_what_it_needs(tmp_path):
    asked = Harness(("arc_easy", "mine"), Path("/x/python"), tmp_path, tmp_path, 10)
    words = command(asked, "http://h:1/v1", "m@w4", tmp_path / "out")
    assert words[:3] == ["/x/python", "-m", "lm_eval"]
    given = dict(part.split("=", 1) for part in words[words.index("--model_args") + 1].split(","))
    assert given["base_url"] == "http://h:1/v1/completions"
    assert given["model"] == "m@w4"
    assert given["tokenizer"] == str(tmp_path)
    assert words[words.index("--tasks") + 1] == "arc_easy,mine"
    assert words[-2:] == ["--limit", "10"]


def test_bundled_sets_are_tasks_of_the_harness(tmp_path):
    import yaml

    assert write_local_tasks(tmp_path) == [
        f"quantile_{name}" for name in ("arithmetic", "facts", "extraction", "format")
    ]
    task = yaml.safe_load((tmp_path / "quantile_facts.yaml").read_text())
    rows = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
    assert len(rows) == 1601
    first = json.loads(rows[0])
    assert first["choices"][first["gold"]] == "Kabul"
    nested = tmp_path / "m"
    nested.mkdir()
    (nested / "results_1.json").write_text('{"results": {"t": {"acc,none": 0.5}}}')
    assert results_in(tmp_path) == {"t": {"acc,none": 0.5}}


def test_a_run_that_is_interrupted_leaves_a_report_marked_partial(fake_server, tmp_path, tasks):
    base_url = fake_server("m@bf16", "m@w4", ttft_ms=400, itl_ms=0, output_tokens=1)
    code = "import typer; from serve_app.evaluate.cli import evaluate; typer.run(evaluate)"
    out = tmp_path / "out"
    args = ["--base-url", base_url, "--quick", "--set", str(tasks), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    answers = out / "raw" / "bf16" / "mine.greedy.jsonl"

    async def until_answers() -> None:
        while not answers.exists() or answers.read_bytes().count(b"\n") < 20:
            assert process.poll() is None
            await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(until_answers(), 60))
    assert process.poll() is None, "it ended before it could be interrupted"
    process.send_signal(2)
    process.wait(60)
    report = decode_report((out / "quality.json").read_bytes(), "q")
    assert report.is_partial
    assert all(each.verdict is not Verdict.PASS for each in report.variants)
