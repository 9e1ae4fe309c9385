"""A whole evaluation: ask, write down, judge, report. An interrupted one goes on where it was."""

import asyncio
import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.domain.quality import QualityReport, encode_report
from serve_app.evaluate.assemble import assemble, greedy_of, texts_of
from serve_app.evaluate.collect import Files, collect, flipped, text_requests
from serve_app.evaluate.endpoint import Endpoint
from serve_app.evaluate.prepare import Prepared, Progress, prepare
from serve_app.evaluate.report import render_html, render_markdown
from serve_app.evaluate.settings import NOISE_FLOOR, Pass, Settings, plan_passes
from serve_app.evaluate.side_by_side import Shown, render_side_by_side
from serve_app.evaluate.store import Store
from serve_app.routing.pin import PIN_SEPARATOR

REPORT = "quality.json"
MAX_FLIPS_SHOWN = 40
"""Per task set, in the outputs side by side."""


@dataclass(frozen=True)
class Wanted:
    """Which variants; nothing said: all that are served, the first one as the baseline."""

    model: str | None = None
    variants: tuple[str, ...] = ()
    baseline: str | None = None


async def evaluate_endpoint(
    endpoint: Endpoint,
    settings: Settings,
    wanted: Wanted,
    out: Path,
    progress: Progress,
    now: Callable[[], datetime.datetime],
) -> QualityReport:
    """Write `quality.json`, `quality.md`, `quality.html` and `outputs.html` into `out`.

    Whatever ends it early, what was answered is judged and written, marked partial, and the error
    goes on. Raises ConfigError, EngineError.
    """
    cards = await endpoint.models()
    model, passes = plan_passes(
        cards,
        settings,
        model=wanted.model,
        variants=wanted.variants,
        baseline=wanted.baseline,
    )
    status = await endpoint.status()
    engines = engines_of(status)
    created_at = now().isoformat(timespec="seconds")
    store = Store(out, {each.model: identity_of(cards[each.model], status) for each in passes})
    prepared = Prepared(gap="not asked yet")
    is_partial = True
    try:
        prepared = await prepare(endpoint, passes[0].model, settings, store, progress)
        files = Files(store, settings, prepared)
        for each in passes:
            await collect(endpoint, each, files, progress)
        is_partial = False
    finally:
        report = await asyncio.shield(
            _finish(
                Files(store, settings, prepared), model, passes, is_partial, created_at, engines
            )
        )
    return report


async def _finish(
    files: Files,
    model: str,
    passes: Sequence[Pass],
    is_partial: bool,
    created_at: str,
    engines: Mapping[str, str],
) -> QualityReport:
    report = assemble(
        files, model, passes, is_partial=is_partial, created_at=created_at, engines=engines
    )
    out = files.store.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "quality.md").write_text(render_markdown(report), encoding="utf-8")
    (out / "quality.html").write_text(render_html(report), encoding="utf-8")
    shown = side_by_side(files, passes)
    (out / "outputs.html").write_text(
        render_side_by_side(model, [p.name for p in passes], shown), encoding="utf-8"
    )
    draft = out / f".{REPORT}.tmp"
    draft.write_bytes(encode_report(report))
    draft.replace(out / REPORT)
    return report


def side_by_side(files: Files, passes: Sequence[Pass]) -> list[Shown]:
    """Generated texts of all passes, and task items that any variant answers otherwise."""
    requests = text_requests(files.settings.sizes.texts)
    texts = {each.name: texts_of(files, each) for each in passes}
    shown = [
        Shown("stories", asked.request, asked.answer, {n: t.get(i) for n, t in texts.items()})
        for i, asked in enumerate(requests)
    ]
    for tasks in files.settings.sets:
        given = {each.name: greedy_of(files, each, tasks.name) for each in passes}
        base = given[passes[0].name]
        picked = sorted(
            {
                i
                for name in given
                if name != NOISE_FLOOR
                for i in flipped(tasks.items, base, given[name])
            }
        )
        shown += [
            Shown(
                tasks.name,
                tasks.items[i].question,
                tasks.items[i].answer,
                {name: answers.get(i) for name, answers in given.items()},
            )
            for i in picked[:MAX_FLIPS_SHOWN]
        ]
    return shown


def engines_of(status: Mapping[str, Any]) -> dict[str, str]:
    """What `/status` says of each variant's engine, in one line each."""
    found = {}
    for name, each in (status.get("variants") or {}).items():
        facts = each.get("facts") if isinstance(each, dict) else None
        if facts:
            kept = ("engine", "torch", "device", "dtype")
            found[name] = ", ".join(str(facts[key]) for key in kept if facts.get(key))
    return found


def identity_of(card: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, object] | None:
    """What tells a variant from another one of its name: by its card of `/v1/models`, and by its
    facts of `/status`. None where neither says anything.
    """
    name = str(card.get("id")).rpartition(PIN_SEPARATOR)[2]
    each = (status.get("variants") or {}).get(name)
    facts = (each.get("facts") if isinstance(each, dict) else None) or {}
    said = {key: card.get(key) for key in ("method", "scheme", "weight_bytes")}
    said |= {key: facts.get(key) for key in ("checkpoint", "engine")}
    return {key: value for key, value in said.items() if value is not None} or None
