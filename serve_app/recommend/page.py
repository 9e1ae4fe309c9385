"""`recommendation.html`: one file that needs nothing else."""

from collections.abc import Sequence

from loadtests.report.figures.style import Picture
from loadtests.report.html import Html, tag
from loadtests.report.page_parts import definitions, figure_html, head, section, table_html
from loadtests.report.page_style import SCRIPT
from serve_app.domain.verdict import Verdict
from serve_app.recommend.method import METHOD
from serve_app.recommend.report import Report
from serve_app.recommend.tables import (
    choice_table,
    contrast_table,
    measured_table,
    packing_table,
    ranking_table,
    standing_lines,
    tone_of,
    variant_table,
)

ANSWERS = {
    Verdict.FAIL: "No variant qualifies",
    Verdict.INCONCLUSIVE: "No decision",
    Verdict.ERROR: "The evidence is broken",
}


def answer_of(report: Report) -> str:
    """`Serve awq`, or what there is in place of an answer."""
    found = report.recommendation
    return ANSWERS[found.verdict] if found.chosen is None else f"Serve {found.chosen}"


def render_page(report: Report, pictures: Sequence[Picture]) -> str:
    """The page as text. Names and reasons from outside are escaped."""
    drawn = {each.name: figure_html(each) for each in pictures}
    choices, ranks = choice_table(report), ranking_table(report)
    by_level = [table_html(each) for each in (ranks, choices) if each is not None]
    pairs = tag(
        "details",
        tag("summary", "Every pair on every axis"),
        table_html(contrast_table(report)),
    )
    sections = [
        section("front", "The front", [drawn[name] for name in ("front",) if name in drawn]),
        section("levels", "At each load level", by_level),
        section("variants", "The variants", [
            table_html(variant_table(report)), table_html(measured_table(report)),
            *(drawn[name] for name in ("bars",) if name in drawn), pairs,
        ]),
        section("change", "The change", _change(report)),
        section("method", "How it was decided", [definitions(METHOD)]),
        section("sources", "Sources", [_list(report.sources)]),
    ]  # fmt: skip
    present = [(name, title, html) for name, title, html in sections if html]
    links = [tag("a", title, href=f"#{name}") for name, title, _ in present]
    title = f"Recommendation: {report.evidence.model}"
    body = [
        tag("header", tag("h1", title), _asked(report), _headline(report)),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *(html for _, _, html in present)),
        tag("script", Html(SCRIPT)),
    ]
    return "<!DOCTYPE html>\n" + tag("html", head(title), tag("body", *body), lang="en") + "\n"


def _asked(report: Report) -> Html:
    return tag("p", terms_text(report), class_="muted")


def terms_text(report: Report) -> str:
    """What was asked for, in one line."""
    terms = report.recommendation.terms
    parts = [f"goal: {terms.goal}"]
    if terms.levels:
        parts.append(f"load levels: {', '.join(terms.levels)}")
    bar = "as the evaluation judged" if terms.quality_bar is None else f"{terms.quality_bar:.2%}"
    parts.append(f"quality bar: {bar}")
    if terms.max_bytes is not None:
        parts.append(f"at most {terms.max_bytes:,} bytes per replica")
    if terms.max_gpus is not None:
        parts.append(f"at most {terms.max_gpus} GPUs")
    if terms.goal == "balanced":
        weights = ", ".join(f"{kind} {weight:g}" for kind, weight in terms.weights.items())
        parts.append(f"weights: {weights}")
    return f"{'; '.join(parts)}; baseline: {report.evidence.baseline}"


def _headline(report: Report) -> Html:
    found = report.recommendation
    steps, standing = list(found.overall.next_steps), list(standing_lines(found))
    return tag(
        "div",
        tag("p", answer_of(report), class_="answer"),
        *(tag("p", text) for text in found.sentences),
        [tag("p", tag("strong", "To know: ")), _list(found.remarks)] if found.remarks else "",
        [tag("p", tag("strong", "Not chosen from: ")), _list(standing)] if standing else "",
        [tag("p", tag("strong", "Measure next: ")), _list(steps)] if steps else "",
        class_=f"verdict {tone_of(found.verdict)}",
    )


def _change(report: Report) -> list[Html]:
    change = report.change
    if report.no_change is not None:
        return [tag("p", f"The Serve file is not changed: {report.no_change}")]
    if change is None:
        return []
    text = change.diff or "The file says it already."
    shown = [tag("p", change_text(report)), tag("pre", text)]
    packed = packing_table(report)
    return [*shown, *([table_html(packed)] if packed is not None else [])]


def change_text(report: Report) -> str:
    """Who serves, who stands in, and what that takes."""
    change, found = report.change, report.recommendation
    if change is None or found.chosen is None:
        return ""
    others = change.kept[1:]
    text = f"{change.path}: all traffic to {found.chosen}"
    text += f"; {', '.join(others)} stands in, reachable by its pin" if others else ""
    text += f"; no longer served: {', '.join(change.removed)}" if change.removed else ""
    if change.left_out:
        text += f"; no room for {', '.join(change.left_out)} to stand in"
    if change.n_gpus is not None:
        text += f"; the minimum replicas need {change.n_gpus} GPU{'s' * (change.n_gpus != 1)}"
    if change.usd_per_hour is not None:
        text += f" at {change.usd_per_hour:,.2f} USD per hour"
    return f"{text}."


def _list(items: Sequence[str]) -> Html:
    return tag("ul", *(tag("li", item) for item in items))
