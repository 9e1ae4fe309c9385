"""`quantile eval` as a command, over a socket, against the fake engine."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from jinja2 import Template
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
from serve_app.evaluate.tasks.bundled import bundled_set
from serve_app.reference.tokenizer import CHAT_TEMPLATE

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
    words = command(asked, "http://h:1/v1", "m@w4", 1024, tmp_path / "out")
    assert words[:3] == ["/x/python", "-m", "lm_eval"]
    given = model_args(words)
    assert given["base_url"] == "http://h:1/v1/completions"
    assert given["model"] == "m@w4"
    assert given["tokenizer"] == str(tmp_path)
    assert given["max_length"] == "1024"
    assert words[words.index("--tasks") + 1] == "arc_easy,mine"
    assert words[-2:] == ["--limit", "10"]
    assert "max_length" not in model_args(command(asked, "http://h:1", "m", None, tmp_path))


def model_args(words: list[str]) -> dict[str, str]:
    parts = words[words.index("--model_args") + 1].split(",")
    return dict(part.split("=", 1) for part in parts)


def test_bundled_sets_are_tasks_of_the_harness(tmp_path):
    assert write_local_tasks(tmp_path) == [
        f"quantile_{name}" for name in ("arithmetic", "facts", "extraction", "format")
    ]
    rows = rows_of(tmp_path, "facts")
    assert len(rows) == 1601
    assert rows[0]["choices"][rows[0]["gold"]] == "Kabul</s>"
    nested = tmp_path / "m"
    nested.mkdir()
    (nested / "results_1.json").write_text('{"results": {"t": {"acc,none": 0.5}}}')
    assert results_in(tmp_path) == {"t": {"acc,none": 0.5}}


def test_at_a_limit_the_harness_is_asked_what_our_own_evaluation_is(tmp_path):
    write_local_tasks(tmp_path, 50)
    items = bundled_set("facts").sample(50).items
    assert [row["question"] for row in rows_of(tmp_path, "facts")] == [i.question for i in items]


def test_its_texts_are_those_that_the_chat_template_makes(tmp_path):
    write_local_tasks(tmp_path, 5)
    task = yaml.safe_load((tmp_path / "quantile_facts.yaml").read_text())
    assert task["target_delimiter"] == ""
    template = Template(CHAT_TEMPLATE)
    for row in rows_of(tmp_path, "facts"):
        asked = {"role": "user", "content": row["question"]}
        prompt = Template(task["doc_to_text"]).render(row)
        assert prompt == template.render(messages=[asked], add_generation_prompt=True)
        for choice in row["choices"]:
            said = {"role": "assistant", "content": choice.removesuffix("</s>")}
            assert prompt + choice == template.render(messages=[asked, said])


def rows_of(folder: Path, name: str) -> list[dict]:
    task = yaml.safe_load((folder / f"quantile_{name}.yaml").read_text())
    lines = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def stand_in(tmp_path) -> Path:
    """A Python that has lm_eval, as far as the command can tell: it writes down how it was asked,
    where the harness writes its results."""
    path = tmp_path / "python"
    path.write_text(
        f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
if sys.argv[1:] != ["-c", "import lm_eval"]:
    out = Path(sys.argv[sys.argv.index("--output_path") + 1]) / "m"
    out.mkdir()
    told = {{"words": sys.argv, "environ": dict(os.environ)}}
    (out / "results_1.json").write_text(json.dumps({{"results": told}}))
    sys.exit(3 if "fails" in sys.argv else 0)
"""
    )
    path.chmod(0o755)
    return path


def test_the_harness_runs_once_for_each_variant(fake_server, tmp_path, stand_in, monkeypatch):
    monkeypatch.setenv("QUANTILE_API_KEY", "secret")
    base_url = fake_server("m@bf16", "m@w4", "m")
    asked = ["--harness", "quantile_facts", "--items", "7", "--tokenizer", str(tmp_path)]
    where = ["--base-url", base_url, "--harness-python", str(stand_in)]
    done = invoke(*where, *asked, "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "harness.json").read_text())
    assert [model_args(each["words"])["model"] for each in found.values()] == ["m@bf16", "m@w4"]
    for each in found.values():
        assert each["environ"]["OPENAI_API_KEY"] == "secret"
        assert each["environ"]["HF_HUB_OFFLINE"] == "1"
        tasks = Path(each["words"][each["words"].index("--include_path") + 1])
        assert len(rows_of(tasks, "facts")) == 7
    own = invoke(*where, "--harness", "own", "--variant", "m@w4", "--out", str(tmp_path / "own"))
    assert own.exit_code == 0, own.output
    (each,) = json.loads((tmp_path / "own" / "harness.json").read_text()).values()
    assert "HF_HUB_OFFLINE" not in each["environ"].keys() - os.environ.keys()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--harness", "quantile_facts"), "need --tokenizer"),
        (("--harness", "own", "--variant", "w8"), "no variant 'w8' is served: have bf16, w4"),
        (("--harness", "fails"), "bf16: lm-eval ended with exit code 3"),
    ],
)
def test_a_harness_that_cannot_run_says_why(fake_server, tmp_path, stand_in, words, reason):
    base_url = fake_server("m@bf16", "m@w4", "m")
    where = ["--base-url", base_url, "--harness-python", str(stand_in)]
    done = invoke(*where, *words, "--out", str(tmp_path / "out"))
    assert reason in str(done.exception)


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
