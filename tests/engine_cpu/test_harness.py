"""lm-evaluation-harness itself on real engines: it must find what `quantile eval` finds, item by
item.

Opt-in, as installing it takes longer than the test: where this Python has lm_eval, or
QUANTILE_HARNESS_PYTHON names one that has (`serve_app.evaluate.harness.INSTALL`).
"""

import asyncio
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from serve_app.evaluate.endpoint import open_endpoint
from serve_app.evaluate.harness import PREFIX, Harness, run_harness
from serve_app.evaluate.run import Wanted, evaluate_endpoint
from serve_app.evaluate.settings import Settings, Sizes
from serve_app.evaluate.tasks.bundled import bundled_set
from serve_app.reference.locate import resolve

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
PYTHON = Path(os.environ.get("QUANTILE_HARNESS_PYTHON", sys.executable))
SETS = ("facts", "extraction")
"""The model's ceiling, and its floor: there its choices are close to each other."""
N = 50


@pytest.fixture
def harness_python() -> Path:
    if subprocess.run(
        [PYTHON, "-c", "import lm_eval"], capture_output=True, check=False
    ).returncode:
        pytest.skip(f"{PYTHON} has no lm_eval: set QUANTILE_HARNESS_PYTHON to one that has")
    return PYTHON


def test_it_finds_what_our_own_evaluation_finds(serve, tmp_path, harness_python):
    base_url, names = f"{serve.base_url}/v1", ("bf16", "gptq")
    asked = Harness(
        tuple(f"{PREFIX}{name}" for name in SETS),
        harness_python,
        tokenizer=resolve("reference://baseline"),
        limit=N,
    )
    found = run_harness(asked, base_url, None, names, tmp_path, "none", Console())
    settings = Settings(
        base_url=base_url,
        sets=tuple(bundled_set(name).sample(N) for name in SETS),
        sizes=Sizes(items_per_set=N, windows=2, answers=2, texts=1),
        n_resamples=100,
    )
    report = asyncio.run(
        evaluate_endpoint(
            open_endpoint(base_url, "none", 60),
            settings,
            Wanted(variants=names),
            tmp_path,
            lambda *_: None,
            lambda: datetime.datetime.now(datetime.UTC),
        )
    )
    for name in names:
        for tasks in settings.sets:
            theirs = choices_of_harness(tmp_path / "harness" / name, f"{PREFIX}{tasks.name}")
            ours = choices_of_ours(tmp_path / "raw" / name / f"{tasks.name}.choice.jsonl")
            assert theirs.keys() == ours.keys() == set(range(N))
            for i, logprobs in ours.items():
                # the same request from the same engine, summed by each on its own
                assert theirs[i] == pytest.approx(logprobs, abs=0.01), tasks.items[i].question
            scored = next(
                s for s in report[name].sets if (s.name, s.scoring) == (tasks.name, "choice")
            )
            result = found[name][f"{PREFIX}{tasks.name}"]
            assert result["acc,none"] == pytest.approx(scored.accuracy.value)
            print(name, tasks.name, result["acc,none"], scored.accuracy.value)


def choices_of_harness(folder: Path, task: str) -> dict[int, list[float]]:
    """Log-probabilities of the choices of each item, as its samples file has them."""
    (file,) = folder.rglob(f"samples_{task}_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {
        row["doc_id"]: [float(value) for value, _is_greedy in row["filtered_resps"]] for row in rows
    }


def choices_of_ours(file: Path) -> dict[int, list[float]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {row["i"]: row["logprobs"] for row in rows if "i" in row}
