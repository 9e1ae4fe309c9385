"""`pipeline.html` in a real browser: runs of the whole path on fake engines."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from serve_app.domain.verdict import Verdict
from serve_app.pipeline.pipeline_file import read_pipeline
from serve_app.pipeline.report import JSON, write_report
from serve_app.pipeline.runner import Asked, run_pipeline
from tests.browser.test_report_page import DRAWINGS, OVERFLOW, TABLE
from tests.fakes.pipeline_tools import RichTools, Script
from tests.fakes.pipelines import pipeline, write_pipeline

HOSTILE = "<script>console.error('injected')</script>"


def run(folder: Path, script: Script | None = None, asked: Asked | None = None) -> Path:
    content = pipeline()
    for stage in content["stages"]:
        stage["on_inconclusive"] = "continue"
    file = read_pipeline(write_pipeline(folder / "p.yaml", content))
    tools = RichTools(folder / "models", script)
    quiet = Console(quiet=True)
    result = run_pipeline(file, folder / "out", tools, asked or Asked(), console=quiet)
    write_report(result)
    return folder / "out"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    return run(
        tmp_path_factory.mktemp("stopped"),
        Script(quality={"int8": Verdict.FAIL}, why=HOSTILE),
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return run(tmp_path_factory.mktemp("begun"), asked=Asked(stop_after="baseline"))


def page(folder: Path) -> Path:
    return folder / "pipeline.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["whole", "stopped", "begun"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_opens_without_an_error_and_nothing_sticks_out(chromium, request, kind, scheme, width):
    chromium.open(page(request.getfixturevalue(kind)), width=width, scheme=scheme)
    assert chromium.console() == []
    assert chromium.ask(OVERFLOW) <= 0


def checklist(chromium) -> dict[str, list[str]]:
    (table,) = [t for t in chromium.ask(TABLE) if t["caption"].startswith("Production checklist")]
    return {row[0]: row[1:] for row in table["rows"]}


def test_the_checklist_is_that_of_the_json(chromium, whole):
    chromium.open(page(whole))
    known = json.loads((whole / JSON).read_bytes())
    shown = checklist(chromium)
    assert list(shown) == [item["title"] for item in known["checklist"]]
    for item in known["checklist"]:
        state, figure, reason, _ = shown[item["title"]]
        assert state.endswith(item["done"]) and figure == item["figure"]
        assert reason == (item["reason"] or "-")
    states = {item["title"]: item["done"] for item in known["checklist"]}
    assert states.pop("Variant to ship") in ("done", "inconclusive")
    assert set(states.values()) == {"done"}, states
    assert chromium.ask("document.querySelector('.verdict .answer').textContent") == known["answer"]


def test_every_link_of_the_checklist_leads_to_evidence(chromium, whole):
    chromium.open(page(whole))
    links = chromium.ask("Array.from(document.querySelectorAll('#checklist a'), a => a.href)")
    assert len(links) > 8
    for link in links:
        assert Path(str(link).removeprefix("file://")).is_file(), link


def test_figures_of_the_campaign_and_of_the_recommendation_are_drawn(chromium, whole):
    chromium.open(page(whole))
    drawn = {each["id"]: each for each in chromium.ask(DRAWINGS)}
    names = {"comparison", "percentiles", "front", "bars"}
    assert set(drawn) == {f"figure-{name}" for name in names}
    assert all(each["marks"] > 10 and each["label"] for each in drawn.values())


def test_a_stopped_one_says_where_and_why_and_what_is_not_done(chromium, stopped):
    chromium.open(page(stopped))
    headline = chromium.ask("document.querySelector('.verdict').textContent")
    assert "Stopped at validate-int8: fail" in headline
    shown = checklist(chromium)
    assert shown["Quality on a validation set"][0] == "✗ failed"
    assert shown["Variant to ship"][0] == "- not done"
    assert "no evidence of gptq, awq" in shown["Memory reduction"][2]
    assert chromium.ask("document.body.textContent").count(HOSTILE) >= 2
    assert chromium.ask("document.querySelectorAll('script').length") == 1


def test_the_markdown_has_the_same_items(whole, stopped):
    for folder in (whole, stopped):
        known = json.loads((folder / JSON).read_bytes())
        text = (folder / "pipeline.md").read_text()
        assert all(f"| {item['title']} |" in text for item in known["checklist"])
        assert HOSTILE not in text
