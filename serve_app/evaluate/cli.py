"""`quantile eval`: the quality of what an endpoint serves, variant by variant."""

import asyncio
import datetime
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from serve_app.domain.errors import ConfigError
from serve_app.domain.quality import QualityBar
from serve_app.domain.verdict import Verdict

if TYPE_CHECKING:
    from serve_app.evaluate.settings import Settings
    from serve_app.evaluate.tasks.items import TaskSet

API_KEY = "QUANTILE_API_KEY"
EXIT_STATUS = ((Verdict.ERROR, 3), (Verdict.FAIL, 1), (Verdict.INCONCLUSIVE, 3))
"""The first verdict that any variant has decides."""

BaseUrl = Annotated[str, typer.Option(help="The OpenAI endpoint.")]
Model = Annotated[str | None, typer.Option(help="The alias, where several are served.")]
Variant = Annotated[
    list[str] | None, typer.Option(help="Repeatable. Default: all that /v1/models lists.")
]
Baseline = Annotated[
    str | None, typer.Option(help="What the others are judged against. Default: the first.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A bundled task set or a .jsonl file; repeatable. Default: all."),
]
PlainText = Annotated[
    Path | None, typer.Option(help="Text for perplexity; default: the reference corpus.")
]
Quick = Annotated[bool, typer.Option(help="Minutes: a look, seldom a decision.")]
Items = Annotated[int | None, typer.Option(min=1, help="At most so many per set.")]
WindowTokens = Annotated[int, typer.Option(min=8, help="Length of a window.")]
Margin = Annotated[float, typer.Option(min=0, max=0.5, help="Relative loss allowed.")]
PerplexityRatio = Annotated[float, typer.Option(min=1.0, help="Over the baseline's, at most.")]
LogprobConcurrency = Annotated[int, typer.Option(min=1, max=2, help="They take memory.")]
Seed = Annotated[int, typer.Option(help="Of the bootstrap.")]
Timeout = Annotated[float, typer.Option(min=1, help="Of one request.")]
Out = Annotated[Path | None, typer.Option(help="Folder; an interrupted run goes on in its own.")]
HarnessTask = Annotated[
    list[str] | None,
    typer.Option(help="Run this lm-evaluation-harness task instead; repeatable."),
]
HarnessPython = Annotated[
    Path | None, typer.Option(help="The Python that has lm_eval. Default: this one.")
]
HarnessInclude = Annotated[Path | None, typer.Option(help="Folder of your own task YAML files.")]
Tokenizer = Annotated[
    Path | None, typer.Option(help="For --harness: folder of the model's tokenizer.")
]


def evaluate(
    base_url: BaseUrl = "http://127.0.0.1:8000/v1",
    model: Model = None,
    variant: Variant = None,
    baseline: Baseline = None,
    tasks: Set = None,
    text: PlainText = None,
    quick: Quick = False,
    items: Items = None,
    window_tokens: WindowTokens = 256,
    margin: Margin = 0.01,
    max_perplexity_ratio: PerplexityRatio = 1.05,
    logprob_concurrency: LogprobConcurrency = 1,
    seed: Seed = 0,
    timeout_s: Timeout = 120.0,
    out: Out = None,
    harness: HarnessTask = None,
    harness_python: HarnessPython = None,
    harness_include: HarnessInclude = None,
    tokenizer: Tokenizer = None,
) -> None:
    """Judge every served variant: perplexity, KL, tasks, ROUGE and BLEU, with paired statistics.

    The API key is read from QUANTILE_API_KEY. Exit code 1: a variant fails; 3: evidence is broken
    or cannot decide (a quick look seldom does).
    Example: quantile eval --quick --out reports/quality
    """
    folder = out or Path("reports") / datetime.datetime.now().strftime("quality-%Y%m%d-%H%M%S")
    console = Console()
    if harness:
        from serve_app.evaluate.harness import Harness, run_harness

        asked = Harness(tuple(harness), harness_python, harness_include, tokenizer, items)
        run_harness(asked, base_url, model, tuple(variant or ()), folder, _api_key(), console)
        return
    from serve_app.evaluate.settings import FULL, QUICK, Settings

    sizes = QUICK if quick else FULL
    if items is not None:
        sizes = replace(sizes, items_per_set=items)
    settings = Settings(
        base_url=base_url,
        sets=_sets(tasks, sizes.items_per_set),
        sizes=sizes,
        bar=QualityBar(margin=margin, max_perplexity_ratio=max_perplexity_ratio),
        text=_text(text),
        window_tokens=window_tokens,
        seed=seed,
        logprob_concurrency=logprob_concurrency,
    )
    _evaluate(settings, (model, tuple(variant or ()), baseline), folder, timeout_s, console)


def _evaluate(
    settings: "Settings",
    wanted: "tuple[str | None, tuple[str, ...], str | None]",
    out: Path,
    timeout_s: float,
    console: Console,
) -> None:
    from serve_app.evaluate.endpoint import open_endpoint
    from serve_app.evaluate.report import print_report
    from serve_app.evaluate.run import REPORT, Wanted, evaluate_endpoint

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console) as bars:
        shown: dict[str, TaskID] = {}

        def progress(what: str, done: int, of: int) -> None:
            if what not in shown:
                shown[what] = bars.add_task(what, total=of)
            bars.update(shown[what], completed=done)

        report = asyncio.run(
            evaluate_endpoint(
                open_endpoint(settings.base_url, _api_key(), timeout_s),
                settings,
                Wanted(*wanted),
                out,
                progress,
                lambda: datetime.datetime.now(datetime.UTC),
            )
        )
    print_report(report, console)
    console.print(f"{out / REPORT}, quality.html, quality.md, outputs.html")
    verdicts = {each.verdict for each in report.variants}
    status = next((code for verdict, code in EXIT_STATUS if verdict in verdicts), 0)
    raise typer.Exit(status)


def _sets(names: list[str] | None, n: int | None) -> "tuple[TaskSet, ...]":
    from serve_app.evaluate.tasks.bundled import BUNDLED, bundled_set
    from serve_app.evaluate.tasks.items import read_task_file

    chosen = names or list(BUNDLED)
    found = [read_task_file(Path(x)) if x.endswith(".jsonl") else bundled_set(x) for x in chosen]
    if len({each.name for each in found}) != len(found):
        raise ConfigError(f"task sets need different names, have {', '.join(chosen)}")
    return tuple(each.sample(n) for each in found)


def _text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {path} cannot be read as UTF-8: {error}") from error


def _api_key() -> str:
    return os.environ.get(API_KEY, "none")
