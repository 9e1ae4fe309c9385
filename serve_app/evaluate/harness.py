"""lm-evaluation-harness against our endpoint: for every task that is not bundled.

It runs in a process of the Python that has it, as `local-completions`: log-likelihoods and greedy
answers both work there, as the chat endpoint has no log-likelihoods.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from serve_app.domain.errors import ConfigError, EngineError
from serve_app.evaluate.endpoint import open_endpoint
from serve_app.evaluate.settings import served_variants
from serve_app.evaluate.tasks.bundled import BUNDLED, bundled_set

INSTALL = (
    "python -m venv .venv-harness && .venv-harness/bin/pip install 'lm-eval[api]' transformers; "
    "then give --harness-python .venv-harness/bin/python"
)


@dataclass(frozen=True)
class Harness:
    """Which tasks, and where the harness, task files and the tokenizer are. `limit`: items."""

    tasks: tuple[str, ...]
    python: Path | None = None
    include: Path | None = None
    tokenizer: Path | None = None
    limit: int | None = None


PREFIX = "quantile_"
"""Of the tasks that are our bundled sets: `quantile_facts` needs no hub."""
QUESTION, END = "<|user|>{{question}}<|assistant|>", "</s>"
"""As the reference model's chat template writes them: the harness sends plain text."""
REQUEST_TIMEOUT_S = 120


def write_local_tasks(folder: Path, limit: int | None = None) -> list[str]:
    """Our bundled sets as tasks of the harness: a YAML file and a JSONL file each; their names.

    The same items as `quantile eval` takes of each set at this limit, and scored as it scores a
    choice: by the probability of the answer with its end of turn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name in (each for each in BUNDLED if each != "guides"):
        tasks = bundled_set(name).sample(limit)
        rows = [
            {
                "question": item.question,
                "choices": [choice + END for choice in item.choices],
                "gold": item.choices.index(item.answer),
            }
            for item in tasks.items
        ]
        data = folder / f"{PREFIX}{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = {
            "task": f"{PREFIX}{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": QUESTION,
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "target_delimiter": "",
            "metric_list": [
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            ],
            "metadata": {"version": 1, "digest": tasks.digest},
        }
        text = yaml.safe_dump(task, sort_keys=False)
        (folder / f"{PREFIX}{name}.yaml").write_text(text, encoding="utf-8")
        names.append(f"{PREFIX}{name}")
    return names


def command(
    asked: Harness, base_url: str, model: str, max_length: int | None, out: Path
) -> list[str]:
    """The harness's command line. Without a tokenizer only tasks that generate can be asked.

    `max_length`: tokens that the model takes; the harness cuts longer texts.
    """
    root = base_url.rstrip("/").removesuffix("/v1")
    given = {
        "model": model,
        "base_url": f"{root}/v1/completions",
        "num_concurrent": "1",
        "timeout": str(REQUEST_TIMEOUT_S),
        "max_retries": "3",
        "tokenizer_backend": "huggingface" if asked.tokenizer else "none",
    }
    if max_length is not None:
        given["max_length"] = str(max_length)
    if asked.tokenizer is not None:
        given["tokenizer"] = str(asked.tokenizer.resolve())
    else:
        given["tokenized_requests"] = "False"
    args = ["--model", "local-completions"]
    args += ["--model_args", ",".join(f"{key}={value}" for key, value in given.items())]
    args += ["--tasks", ",".join(asked.tasks), "--output_path", str(out), "--log_samples"]
    if asked.include is not None:
        args += ["--include_path", str(asked.include)]
    if asked.limit is not None:
        args += ["--limit", str(asked.limit)]
    return [str(asked.python or sys.executable), "-m", "lm_eval", *args]


def run_harness(
    asked: Harness,
    base_url: str,
    model: str | None,
    variants: tuple[str, ...],
    out: Path,
    api_key: str,
    console: Console,
) -> dict[str, dict[str, Any]]:
    """Every variant in turn; its results by task, also in `harness.json`.

    No variant named: all that are served. Raises ConfigError where the harness, a tokenizer that it
    needs or a variant is missing, EngineError where it fails or nobody answers.
    """
    require_harness(asked.python)
    is_bundled = [task.startswith(PREFIX) for task in asked.tasks]
    if any(is_bundled) and asked.tokenizer is None:
        raise ConfigError(
            f"{PREFIX}* tasks are judged by log-probabilities: need --tokenizer, the folder of the "
            "model's tokenizer (of the reference model any variant's folder)"
        )
    if asked.include is None and any(is_bundled):
        write_local_tasks(out / "harness" / "tasks", asked.limit)
        asked = replace(asked, include=out / "harness" / "tasks")
    environ = {**os.environ, "OPENAI_API_KEY": api_key}
    if all(is_bundled):
        environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    cards = asyncio.run(open_endpoint(base_url, api_key, REQUEST_TIMEOUT_S).models())
    found: dict[str, dict[str, Any]] = {}
    for name, served in _chosen(cards, model, variants).items():
        folder = out / "harness" / name.replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        console.print(f"{name}: lm-eval {' '.join(asked.tasks)}", markup=False)
        words = command(asked, base_url, served, cards[served].get("max_model_len"), folder)
        done = subprocess.run(words, check=False, env=environ)
        if done.returncode:
            raise EngineError(f"{name}: lm-eval ended with exit code {done.returncode}: see above")
        found[name] = results_in(folder)
    (out / "harness.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, results in found.items():
        console.print(f"{name}: {json.dumps(results)}", markup=False)
    return found


def _chosen(
    cards: Mapping[str, object], model: str | None, variants: tuple[str, ...]
) -> dict[str, str]:
    """Ids of `/v1/models` by the names of the variants, which may be ids themselves."""
    if variants and all(name in cards for name in variants):
        return {name: name for name in variants}
    known = served_variants(cards, model)
    missing = [name for name in variants if name not in known]
    if missing:
        raise ConfigError(f"no variant {missing[0]!r} is served: have {', '.join(known)}")
    return {name: known[name] for name in variants or known}


def require_harness(python: Path | None) -> None:
    """Raises ConfigError with how to install it where this Python has no lm_eval."""
    probe = [str(python or sys.executable), "-c", "import lm_eval"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"--harness-python {python} does not start: {error}") from error
    if done.returncode:
        raise ConfigError(f"need lm-evaluation-harness, {probe[0]} has none: {INSTALL}")


def results_in(folder: Path) -> dict[str, Any]:
    """The newest results file's `results`. Raises EngineError where there is none."""
    files = sorted(folder.rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise EngineError(f"lm-eval wrote no results into {folder}")
    results = json.loads(files[-1].read_text(encoding="utf-8"))["results"]
    return dict(results)
