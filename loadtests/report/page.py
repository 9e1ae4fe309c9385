"""`report.html`: one file that needs nothing else."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

import yaml

from loadtests.analyse.metrics import FORMULAS
from loadtests.report.figures.style import Picture, to_svg
from loadtests.report.findings import (
    clock_of,
    headlines,
    notes_of,
    slo_reasons,
    status_line,
    trust_reasons,
    verdict_line,
)
from loadtests.report.footnotes import under_latencies, under_summary
from loadtests.report.html import Content, Html, join, tag
from loadtests.report.page_style import CSS, SCRIPT
from loadtests.report.provenance import facts_of, facts_table
from loadtests.report.result import CampaignResult
from loadtests.report.rows import number
from loadtests.report.samples import Failure
from loadtests.report.stages import stage_rows
from loadtests.report.tables import (
    MARKS,
    Cell,
    Table,
    client_table,
    comparison_table,
    failure_table,
    latency_table,
    overview_table,
    probe_table,
    saturation_table,
    summary_table,
)

MAX_REASONS = 8
"""Reasons shown in the headline; the others are one press away."""
LONG_CELL = 28
"""Characters from which a cell's text wraps."""


def render_page(
    result: CampaignResult, pictures: Sequence[Picture], failures: Sequence[Failure]
) -> str:
    """The page as text. Names, details and labels of the target are escaped."""
    drawn = {each.name: each for each in pictures}
    sections = [
        _section("saturation", "Saturation", _saturation(result, drawn)),
        _section("summary", "Summary", _summary(result)),
        _section("comparison", "Comparison", _comparison(result, drawn)),
        _section("latency", "Latency", _latency(result, drawn)),
        _section("load", "Load", _figures(drawn, "load")),
        _section("timeline", "Timeline", _figures(drawn, "timeline", "scraped")),
        _section("failures", "Failures", _failures(drawn, failures)),
        _section("client", "The client", _client(result)),
        _section("provenance", "Provenance", _provenance(result)),
        _section("formulas", "Formulas", _formulas()),
        _section("campaign", "Campaign", [tag("pre", _campaign(result))]),
    ]
    present = [(name, title, html) for name, title, html in sections if html]
    links = [tag("a", title, href=f"#{name}") for name, title, _ in present]
    title = f"Load campaign: {result.campaign.target.model}"
    body = [
        tag("header", tag("h1", title), _started(result), _headline(result)),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *(html for _, _, html in present)),
        tag("script", Html(SCRIPT)),
    ]
    return "<!DOCTYPE html>\n" + tag("html", _head(title), tag("body", *body), lang="en") + "\n"


def _head(title: str) -> Html:
    """Nothing may be loaded, and no script but ours may run, whatever a name contains."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(CSS)),
    )


def _section(name: str, title: str, content: Sequence[Html]) -> tuple[str, str, Html | None]:
    """A section of the page; None where there is nothing to show."""
    if not content:
        return name, title, None
    return name, title, tag("section", tag("h2", title), *content, id=name)


def _started(result: CampaignResult) -> Html:
    campaign, host = result.campaign, result.manifest.host
    cells = f"{result.n_cells_done}" + (f" of {result.n_cells}" if result.n_cells else "")
    text = (
        f"{campaign.target.base_url}, variants: {len(campaign.variant_names())}, "
        f"blocks: {campaign.blocks}, cells: {cells}, started {result.manifest.started_at}, "
        f"quantile {host.get('quantile', '-')}"
    )
    return tag("p", text, class_="muted")


def _headline(result: CampaignResult) -> Html:
    answers = [
        tag(
            "li",
            tag("span", MARKS.get(each.tone, str(each.tone)), class_=f"tone {each.tone}"),
            f" {each.text}",
        )
        for each in headlines(result)
    ]
    reasons, notes = (*trust_reasons(result), *slo_reasons(result)), notes_of(result)
    return tag(
        "div",
        tag("p", verdict_line(result), class_="answer"),
        tag("ul", *answers, class_="answers") if answers else "",
        tag("p", tag("strong", "Trust: "), status_line(result), "."),
        _items(reasons, "more reasons"),
        [tag("p", tag("strong", "To know: ")), _items(notes, "more notes")] if notes else "",
        class_=f"verdict {result.verdict}",
    )


def _items(texts: Sequence[str], more: str) -> Content:
    """The first ones, and the others one press away."""
    if not texts:
        return ""
    items = [tag("li", each) for each in texts]
    shown = tag("ul", *items[:MAX_REASONS])
    if len(items) <= MAX_REASONS:
        return shown
    summary = tag("summary", f"{len(items) - MAX_REASONS} {more}")
    return [shown, tag("details", summary, tag("ul", *items[MAX_REASONS:]))]


def _summary(result: CampaignResult) -> list[Html]:
    overview = overview_table(result.comparisons)
    groups = stage_rows(result)
    if not groups:
        return [tag("p", "No cell ran to its end, so there is no number to show.")]
    found = [_table(overview)] if overview else []
    found += [_table(summary_table(result, group), under_summary(group)) for group in groups]
    text = f"{clock_of(result)}. Failures count as infinite (∞) in TTFT and E2E, and not in TPOT."
    return [*found, tag("p", text, class_="muted")]


def _comparison(result: CampaignResult, drawn: dict[str, Picture]) -> list[Html]:
    if not result.comparisons:
        return []
    table = _table(comparison_table(result.comparisons))
    every = tag("details", tag("summary", "Every comparison, with its reason"), table)
    return [*_figures(drawn, "comparison"), every]


def _saturation(result: CampaignResult, drawn: dict[str, Picture]) -> list[Html]:
    if not result.saturation:
        return []
    tables = [_table(saturation_table(result)), _table(probe_table(result))]
    return [tables[0], *_figures(drawn, "knee"), tables[1]]


def _latency(result: CampaignResult, drawn: dict[str, Picture]) -> list[Html]:
    tables = [_table(latency_table(g), under_latencies(g)) for g in stage_rows(result)]
    if not tables:
        return []
    every = tag("details", tag("summary", "Every latency, with its interval"), *tables)
    return [*_figures(drawn, "percentiles", "ecdf"), every]


def _failures(drawn: dict[str, Picture], failures: Sequence[Failure]) -> list[Html]:
    return [*_figures(drawn, "errors"), _table(failure_table(failures))] if failures else []


def _client(result: CampaignResult) -> list[Html]:
    limits = result.campaign.validity
    return [_table(client_table(group, limits)) for group in stage_rows(result)]


def _provenance(result: CampaignResult) -> list[Html]:
    manifest = result.manifest
    known = {
        **manifest.host,
        "load processes": str(manifest.n_workers),
        "tokens per word": number(manifest.tokens_per_word),
        **{f"SHA-256 of {path}": digest for path, digest in manifest.inputs.items()},
    }
    facts = facts_of(manifest)
    return [_definitions(known), *([_table(facts_table(facts))] if facts else [])]


def _formulas() -> list[Html]:
    return [_definitions(FORMULAS)]


def _definitions(entries: Mapping[str, str]) -> Html:
    pairs = ((tag("dt", name), tag("dd", text)) for name, text in entries.items())
    return tag("dl", *(part for pair in pairs for part in pair))


def _campaign(result: CampaignResult) -> str:
    return yaml.safe_dump(result.campaign.model_dump(mode="json"), sort_keys=False)


def _figures(drawn: dict[str, Picture], *names: str) -> list[Html]:
    return [_figure(drawn[name]) for name in names if name in drawn]


def _figure(picture: Picture) -> Html:
    svg = re.sub(r"<svg ", '<svg role="img" ', to_svg(picture.figure), count=1)
    # the label is escaped by `tag`; the drawing's own text by matplotlib
    label = tag("svg", aria_label=picture.alt)[len("<svg ") : -len("></svg>")]
    svg = svg.replace("<svg ", f"<svg {label} ", 1)
    return tag(
        "figure",
        tag("h3", picture.title),
        tag(
            "div", Html(svg), class_="scroll", tabindex="0", role="group", aria_label=picture.title
        ),
        tag("figcaption", picture.caption),
        id=f"figure-{picture.name}",
    )


def _table(table: Table, footnote: str = "") -> Html:
    kinds = [_kind(table, i) for i in range(len(table.header))]
    head = [
        tag("th", tag("button", text, type="button"), scope="col", class_=kind)
        for text, kind in zip(table.header, kinds, strict=True)
    ]
    body = [tag("tr", *_row(row, kinds)) for row in table.rows]
    inner = tag(
        "table", tag("caption", table.caption), tag("thead", tag("tr", *head)), tag("tbody", *body)
    )
    caption = table.caption
    shown = tag("div", inner, class_="scroll", tabindex="0", role="group", aria_label=caption)
    return join([shown, tag("p", footnote, class_="muted footnote") if footnote else ""])


def _kind(table: Table, i: int) -> str | None:
    """How a column is set: names and running text to the left, numbers to the right."""
    if i < table.n_names:
        return "name"
    is_text = any(len(row[i].text) > LONG_CELL for row in table.rows)
    return "long" if is_text else None


def _row(row: Sequence[Cell], kinds: Sequence[str | None]) -> Iterable[Html]:
    for cell, kind in zip(row, kinds, strict=True):
        if kind == "name":
            yield tag("th", cell.text, scope="row", class_=kind)
        else:
            classes = " ".join(part for part in (cell.tone, kind) if part)
            yield tag("td", cell.text, class_=classes or None, title=cell.title)
