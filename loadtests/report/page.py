"""`report.html`: one file that needs nothing else."""

from collections.abc import Sequence

import yaml

from loadtests.analyse.metrics import FORMULAS
from loadtests.report.figures.style import Picture
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
from loadtests.report.html import Content, Html, tag
from loadtests.report.page_parts import definitions, figure_html, head, section, table_html
from loadtests.report.page_style import SCRIPT
from loadtests.report.provenance import facts_of, facts_table
from loadtests.report.result import CampaignResult
from loadtests.report.rows import number
from loadtests.report.samples import Failure
from loadtests.report.stages import stage_rows
from loadtests.report.tables import (
    MARKS,
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


def render_page(
    result: CampaignResult, pictures: Sequence[Picture], failures: Sequence[Failure]
) -> str:
    """The page as text. Names, details and labels of the target are escaped."""
    drawn = {each.name: each for each in pictures}
    sections = [
        section("saturation", "Saturation", _saturation(result, drawn)),
        section("summary", "Summary", _summary(result)),
        section("comparison", "Comparison", _comparison(result, drawn)),
        section("latency", "Latency", _latency(result, drawn)),
        section("load", "Load", _figures(drawn, "load")),
        section("timeline", "Timeline", _figures(drawn, "timeline", "scraped")),
        section("failures", "Failures", _failures(drawn, failures)),
        section("client", "The client", _client(result)),
        section("provenance", "Provenance", _provenance(result)),
        section("formulas", "Formulas", _formulas()),
        section("campaign", "Campaign", [tag("pre", _campaign(result))]),
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
    return "<!DOCTYPE html>\n" + tag("html", head(title), tag("body", *body), lang="en") + "\n"


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
    found = [table_html(overview)] if overview else []
    found += [table_html(summary_table(result, group), under_summary(group)) for group in groups]
    text = f"{clock_of(result)}. Failures count as infinite (∞) in TTFT and E2E, and not in TPOT."
    return [*found, tag("p", text, class_="muted")]


def _comparison(result: CampaignResult, drawn: dict[str, Picture]) -> list[Html]:
    if not result.comparisons:
        return []
    table = table_html(comparison_table(result.comparisons))
    every = tag("details", tag("summary", "Every comparison, with its reason"), table)
    return [*_figures(drawn, "comparison"), every]


def _saturation(result: CampaignResult, drawn: dict[str, Picture]) -> list[Html]:
    if not result.saturation:
        return []
    tables = [table_html(saturation_table(result)), table_html(probe_table(result))]
    return [tables[0], *_figures(drawn, "knee"), tables[1]]


def _latency(result: CampaignResult, drawn: dict[str, Picture]) -> list[Html]:
    tables = [table_html(latency_table(g), under_latencies(g)) for g in stage_rows(result)]
    if not tables:
        return []
    every = tag("details", tag("summary", "Every latency, with its interval"), *tables)
    return [*_figures(drawn, "percentiles", "ecdf"), every]


def _failures(drawn: dict[str, Picture], failures: Sequence[Failure]) -> list[Html]:
    return [*_figures(drawn, "errors"), table_html(failure_table(failures))] if failures else []


def _client(result: CampaignResult) -> list[Html]:
    limits = result.campaign.validity
    return [table_html(client_table(group, limits)) for group in stage_rows(result)]


def _provenance(result: CampaignResult) -> list[Html]:
    manifest = result.manifest
    known = {
        **manifest.host,
        "load processes": str(manifest.n_workers),
        "tokens per word": number(manifest.tokens_per_word),
        **{f"SHA-256 of {path}": digest for path, digest in manifest.inputs.items()},
    }
    facts = facts_of(manifest)
    return [definitions(known), *([table_html(facts_table(facts))] if facts else [])]


def _formulas() -> list[Html]:
    return [definitions(FORMULAS)]


def _campaign(result: CampaignResult) -> str:
    return yaml.safe_dump(result.campaign.model_dump(mode="json"), sort_keys=False)


def _figures(drawn: dict[str, Picture], *names: str) -> list[Html]:
    return [figure_html(drawn[name]) for name in names if name in drawn]
