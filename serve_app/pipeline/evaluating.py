"""What `quantile eval` is asked in a pipeline, settled when the file is read; and asking it."""

import asyncio
import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from serve_app.domain.errors import ConfigError
from serve_app.domain.quality import QualityBar, QualityReport
from serve_app.evaluate.settings import FULL, Settings
from serve_app.evaluate.tasks.bundled import BUNDLED, bundled_set
from serve_app.evaluate.tasks.items import read_task_file
from serve_app.pipeline.schema import Evaluation

TIMEOUT_S = 120.0


def settings_of(asked: Evaluation, base_url: str, folder: Path) -> Settings:
    """`base_url` ends in `/v1`; files are relative to `folder`. Raises ConfigError."""
    names = asked.sets or BUNDLED
    sets = [
        read_task_file(folder / name) if name.endswith(".jsonl") else bundled_set(name)
        for name in names
    ]
    if len({each.name for each in sets}) != len(sets):
        raise ConfigError(f"evaluate.sets: need distinct names, have {', '.join(names)}")
    given = {"windows": asked.windows, "answers": asked.answers, "texts": asked.texts}
    sizes = replace(FULL, **{name: n for name, n in given.items() if n is not None})
    return Settings(
        base_url=base_url,
        sets=tuple(each.sample(asked.items) for each in sets),
        sizes=replace(sizes, items_per_set=asked.items),
        bar=QualityBar(
            margin=asked.margin,
            max_perplexity_ratio=asked.max_perplexity_ratio,
            alpha=asked.alpha,
        ),
        text=None if asked.text is None else _text(folder / asked.text),
        task_concurrency=asked.concurrency,
    )


def key_of_settings(settings: Settings) -> dict[str, Any]:
    """What of the settings decides the outcome and is not in the file itself."""
    text = settings.text
    return {
        "sets": {each.name: each.digest for each in settings.sets},
        "text": None if text is None else hashlib.sha256(text.encode()).hexdigest(),
    }


def evaluate(
    settings: Settings, model: str, variants: Sequence[str], out: Path, console: Console
) -> QualityReport:
    """`quantile eval` with its bars; the baseline first in `variants`. Raises EngineError."""
    from serve_app.evaluate.endpoint import open_endpoint
    from serve_app.evaluate.run import Wanted, evaluate_endpoint

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        shown: dict[str, TaskID] = {}

        def progress(what: str, done: int, of: int) -> None:
            if what not in shown:
                shown[what] = bars.add_task(what, total=of)
            bars.update(shown[what], completed=done)

        return asyncio.run(
            evaluate_endpoint(
                open_endpoint(settings.base_url, "none", TIMEOUT_S),
                settings,
                Wanted(model, tuple(variants), variants[0]),
                out,
                progress,
                lambda: datetime.datetime.now(datetime.UTC),
            )
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"evaluate.text: {path} cannot be read as UTF-8: {error}") from error
