"""`pipeline.html`: the production checklist with its evidence; one file that needs nothing else."""

from collections.abc import Sequence
from pathlib import Path

from loadtests.report.figures.style import Picture
from loadtests.report.html import Html, tag
from loadtests.report.page_parts import definitions, figure_html, head, section, table_html
from loadtests.report.page_style import SCRIPT
from serve_app.pipeline.checklist import Item
from serve_app.pipeline.report import PipelineReport
from serve_app.pipeline.tables import MARKS, TONES, gate_table, stage_table, variant_table

FROM_CAMPAIGN = ("comparison", "percentiles")


def render_page(report: PipelineReport, pictures: Sequence[Picture]) -> str:
    """The page as text. Names and reasons from outside are escaped. Within `style()`."""
    drawn = [(each.name, figure_html(each)) for each in pictures]
    load = [html for name, html in drawn if name in FROM_CAMPAIGN]
    chosen = [html for name, html in drawn if name not in FROM_CAMPAIGN]
    file = report.result.file
    sections = [
        section("checklist", "Production checklist", [_checklist(report.items)]),
        section("variants", "The variants", [table_html(variant_table(report))]),
        section("recommendation", "The recommendation", _recommendation(report, chosen)),
        section("load", "Under load", load),
        section("stages", "Stages", [table_html(stage_table(report))]),
        section("gates", "Gates", [table_html(gate_table(report))]),
        section("sources", "Where it comes from", [definitions(_sources(report))]),
        section("pipeline", "Pipeline", [tag("pre", file.text)]),
    ]
    present = [(name, title, html) for name, title, html in sections if html]
    links = [tag("a", title, href=f"#{name}") for name, title, _ in present]
    title = f"Pipeline: {file.pipeline.model}"
    body = [
        tag("header", tag("h1", title), _began(report), _headline(report)),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *(html for _, _, html in present)),
        tag("script", Html(SCRIPT)),
    ]
    return "<!DOCTYPE html>\n" + tag("html", head(title), tag("body", *body), lang="en") + "\n"


def began_text(report: PipelineReport) -> str:
    """What ran, when, for how long."""
    records = [each.record for each in report.lines if each.record is not None]
    parts = [f"base {report.result.file.pipeline.base}"]
    if records:
        parts.append(f"started {min(each.started_at for each in records)}")
        parts.append(f"{sum(each.wall_s for each in records):,.0f} s in {len(records)} stages")
    return ", ".join(parts)


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _began(report: PipelineReport) -> Html:
    return tag("p", began_text(report), class_="muted")


def _headline(report: PipelineReport) -> Html:
    answer, tone = report.answer
    recommended = report.recommended
    n = sum(TONES[item.done] == "pass" for item in report.items)
    lines = [f"{n} of {len(report.items)} items of the production checklist are done."]
    lines += [sentence(report.result.decision.reason)]
    lines += list(recommended.sentences) if recommended is not None else []
    return tag(
        "div",
        tag("p", answer, class_="answer"),
        *(tag("p", text) for text in lines),
        class_=f"verdict {tone}",
    )


def _checklist(items: Sequence[Item]) -> Html:
    heads = ("item", "state", "figure", "reason", "evidence")
    rows = [
        tag(
            "tr",
            tag("th", item.title, scope="row", class_="name"),
            tag("td", MARKS[item.done], class_=TONES[item.done]),
            tag("td", item.figure, class_="long"),
            tag("td", item.reason or "-", class_="long"),
            tag("td", *_links(item.evidence), class_="long"),
        )
        for item in items
    ]
    table = tag(
        "table",
        tag("caption", "Production checklist, each item with its raw evidence"),
        tag("thead", tag("tr", *(tag("th", each, scope="col", class_="long") for each in heads))),
        tag("tbody", *rows),
    )
    label = "Production checklist"
    return tag("div", table, class_="scroll", tabindex="0", role="group", aria_label=label)


def _links(paths: Sequence[str]) -> list[Html | str]:
    """Files in the run's folder by their path beside the page, others by where they are."""
    found: list[Html | str] = []
    for path in paths:
        href = Path(path).as_uri() if Path(path).is_absolute() else path
        shown = "/".join(Path(path).parts[-2:]) if Path(path).is_absolute() else path
        found += [", "] if found else []
        found.append(tag("a", shown, href=href))
    return found or ["-"]


def _recommendation(report: PipelineReport, drawn: Sequence[Html]) -> list[Html]:
    found = report.recommended
    if found is None:
        return []
    steps = [tag("li", step) for step in found.next_steps]
    return [
        tag("p", tag("strong", found.answer)),
        *(tag("p", text) for text in found.sentences),
        *([tag("p", tag("strong", "Measure next: ")), tag("ul", *steps)] if steps else []),
        *drawn,
    ]


def _sources(report: PipelineReport) -> dict[str, str]:
    first = report.result.steps[0].inputs
    versions = {name: str(text) for name, text in dict(first["versions"]).items()}
    return {
        "pipeline": str(report.result.file.path),
        "base checkpoint": report.result.file.pipeline.base,
        "SHA-256 of the base": str(first["base"]),
        **versions,
        "quantizers": ", ".join(f"{k} {v}" for k, v in dict(first["quantizers"]).items()),
    }
