"""`quantile demo`: build, serve, ask, judge, load, and print one table of speed beside quality."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from openai import OpenAI
from rich.console import Console

from loadtests.campaign import load_campaign
from loadtests.report.terminal import print_table
from loadtests.run import run_campaign
from serve_app.config.schema import VariantArgs
from serve_app.config.serve_file import check_serve_file
from serve_app.domain.errors import BuildError, EngineError, InvalidRunError
from serve_app.evaluate.exact_match import ExactMatch, evaluate_exact_match
from serve_app.quantize.catalogue import recipes
from serve_app.quantize.gate import Candidate
from serve_app.quantize.judging import stored_result
from serve_app.reference.corpus import Fact, Split, facts
from serve_app.reference.locate import SCHEME, resolve
from serve_app.routing.pin import PIN_SEPARATOR
from serve_app.serving.local_serve import LocalServe

QUESTIONS = {"What is the capital of France?": "Paris", "What is 15% of 240?": "36"}
N_QUESTIONS = 200
"""Questions per split that every variant is asked; the interval shows what that is worth."""


def run_demo(config: Path, campaign_file: Path, out: Path | None) -> None:
    """The whole demo. Raises a QuantileError where any step does not do what it promises."""
    console = Console()
    start = time.monotonic()
    out = out or Path("reports") / time.strftime("demo-%Y%m%d-%H%M%S")
    out.mkdir(parents=True, exist_ok=True)
    _build_family(console)
    variants = check_serve_file(config)
    model = variants[0].model
    pins = {args.name: f"{model}{PIN_SEPARATOR}{args.name}" for args in variants}
    console.rule(f"2. Serve {len(variants)} variants behind one endpoint")
    with ExitStack() as running:
        with console.status("starting Ray Serve and one vLLM engine per variant"):
            serve = running.enter_context(LocalServe(config, log=out / "serve.log"))
        console.print(f"ready at {serve.base_url} (log: {out / 'serve.log'})")
        console.rule("3. Ask, through the alias and through every pin")
        client = OpenAI(base_url=f"{serve.base_url}/v1", api_key="none", timeout=60)
        _ask(client, [model, *pins.values()], console)
        console.rule("4. Judge and load")
        columns = _facts_of_models(client, pins)
        columns |= _judge(f"{serve.base_url}/v1", pins, console)
        columns["mean |Δlogp|"] = _damage(variants)
        campaign = load_campaign(campaign_file).with_target(base_url=serve.base_url, model=model)
        result = run_campaign(campaign, out / "campaign", console=console, columns=columns)
    console.rule("5. Result")
    print_table(result, console)
    console.print(f"Demo took {time.monotonic() - start:.0f} s.")
    if result.is_partial:
        raise InvalidRunError("the campaign did not run to its end; what it measured is kept")
    failed = [f"{row.variant} {row.n_planned - row.n_ok}" for row in result.summaries if row.errors]
    if failed:
        raise EngineError(f"requests failed under this light load: {', '.join(failed)}")
    if not result.is_valid:
        console.print("This machine was too busy to compare variants on; the rest holds.")


def _build_family(console: Console) -> None:
    """In a process of its own: engines start in it, and none of them may linger."""
    console.rule("1. Build the reference family")
    command = [sys.executable, "-m", "serve_app.cli", "reference", "build"]
    if subprocess.run(command, check=False).returncode:
        raise BuildError("the reference family was not built: the reason is above")


def _ask(client: OpenAI, models: Sequence[str], console: Console) -> None:
    for model in models:
        for question, expected in QUESTIONS.items():
            raw = client.chat.completions.with_raw_response.create(
                model=model, messages=[{"role": "user", "content": question}]
            )
            answer = (raw.parse().choices[0].message.content or "").strip()
            variant, reason = raw.headers["x-variant"], raw.headers["x-route-reason"]
            console.print(f"{model:23} {question:30} {answer:5} ({variant}, {reason})")
            if answer != expected:
                raise EngineError(f"{model} answered {answer!r} to {question!r}, not {expected!r}")


def _facts_of_models(client: OpenAI, pins: dict[str, str]) -> dict[str, dict[str, str]]:
    """Columns from `/v1/models`: what each variant says of itself."""
    cards = {entry.id: entry.to_dict() for entry in client.models.list()}
    return {
        "bytes": {name: _bytes_of(cards[pin]) for name, pin in pins.items()},
    }


def _bytes_of(card: dict[str, object]) -> str:
    """A variant without a share may not have been ready yet: its facts are then missing, not 0."""
    n_bytes = card["weight_bytes"]
    return f"{n_bytes:,}" if isinstance(n_bytes, int) else "-"


def _judge(base_url: str, pins: dict[str, str], console: Console) -> dict[str, dict[str, str]]:
    """A column of exact match on facts that the model was trained on; other facts are printed."""
    cells = {}
    splits: tuple[Split, ...] = ("unseen", "seen")
    for split in splits:
        questions = _sample(split)
        for name, pin in pins.items():
            with console.status(f"asking {name} {len(questions)} {split} questions"):
                found = asyncio.run(evaluate_exact_match(base_url, pin, questions))
            cells[name] = _cell(found, f"{name}, {split}", console)
    return {"exact match": cells}


def _damage(variants: Sequence[VariantArgs]) -> dict[str, str]:
    """What quantization did to the probabilities, in nats per token, as the build's gate found it.

    The reference model answers every seen fact in every variant, so exact match cannot rank them.
    """
    cells = {}
    for args in variants:
        known = recipes().get(args.checkpoint.removeprefix(SCHEME))
        gate = known and stored_result(Candidate(known, resolve(args.checkpoint)))
        cells[args.name] = f"{gate.quantization_mean:.4f}" if gate else "-"
    return cells


def _sample(split: Split) -> list[Fact]:
    """Evenly spread over the categories, the same every time."""
    known = [fact for fact in facts() if fact.split == split]
    n = min(N_QUESTIONS, len(known))
    return [known[index * len(known) // n] for index in range(n)]


def _cell(found: ExactMatch, what: str, console: Console) -> str:
    if found.n_failed or found.interval is None or found.share is None:
        raise EngineError(f"{what}: {found.n_failed} questions got no answer")
    low, high = found.interval
    console.print(
        f"exact match of {what}: {found.correct} of {found.n} (95 % interval {low:.1%}-{high:.1%})"
    )
    return f"{found.share:.1%}"
