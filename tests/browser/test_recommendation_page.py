"""`recommendation.html` in a real browser."""

import json
from pathlib import Path

import pytest

from serve_app.advise.candidates import Goal, Terms
from serve_app.advise.recommendation import recommend
from serve_app.domain.verdict import Verdict
from serve_app.recommend.change import change_of
from serve_app.recommend.report import JSON, Report, write_report
from serve_app.recommend.serve_config import read_served
from tests.browser.test_report_page import DRAWINGS, OVERFLOW, TABLE
from tests.fakes.evidence import Made, evidence

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>console.error('injected')</script>"
MADE = {
    "fp16": Made(0.0, {"light": 100, "heavy": 300}, 16, 1000, 1.00),
    "int8": Made(0.001, {"light": 80, "heavy": 180}, 8.5, 1500, 0.66),
    "awq": Made(0.008, {"light": 50, "heavy": 420}, 5.5, 700, None),
    HOSTILE: Made(0.3, {"light": 45, "heavy": 500}, 4.0, None, None, Verdict.FAIL),
}


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    found = evidence({k: v for k, v in MADE.items() if k != "awq"})
    made = recommend(found, Terms(Goal.CHEAPEST, ("light", "heavy"), 0.02))
    assert made.chosen == "int8"
    served = read_served(ROOT / "configs/prod.yaml", None)
    change = change_of(served, made.variant_set, None, None)
    folder = tmp_path_factory.mktemp("decided")
    write_report(Report(found, made, change, ("reports/compare",)), folder)
    return folder


@pytest.fixture(scope="module")
def open_(tmp_path_factory):
    found = evidence(MADE)
    made = recommend(found, Terms(Goal.CHEAPEST, ("light", "heavy"), 0.02))
    assert made.verdict is Verdict.INCONCLUSIVE
    folder = tmp_path_factory.mktemp("open")
    write_report(Report(found, made, None, ()), folder)
    return folder


def page(folder: Path) -> Path:
    return folder / "recommendation.html"


def test_it_opens_without_an_error_and_runs_no_script_of_others(chromium, decided, open_):
    for folder in (decided, open_):
        for scheme in ("light", "dark"):
            chromium.open(page(folder), scheme=scheme)
            assert chromium.console() == []
            assert chromium.ask("document.body.textContent").count(HOSTILE) >= 3


def test_it_says_what_the_json_says(chromium, decided):
    chromium.open(page(decided))
    known = json.loads((decided / JSON).read_bytes())
    assert known["chosen"] == "int8" and known["split_bp"] == {"int8": 10_000, "fp16": 0}
    text = chromium.ask("document.querySelector('.verdict').innerText")
    assert text.startswith("Serve int8") and all(each in text for each in known["sentences"])
    shown = chromium.ask("document.querySelector('#change pre').textContent")
    assert shown == known["change"]["diff"] and "+          split: {int8: 10000, fp16: 0}" in shown


def test_the_tables_have_every_variant_and_dashes_for_what_is_missing(chromium, open_):
    chromium.open(page(open_))
    tables = {each["caption"]: each for each in chromium.ask(TABLE)}
    judged = tables["How each variant was judged, with 95 % intervals"]
    assert [row[0] for row in judged["rows"]] == list(MADE)
    taken = tables["What each variant gives and takes, with 95 % intervals"]
    by_name = {row[0]: dict(zip(taken["header"], row, strict=True)) for row in taken["rows"]}
    assert by_name["awq"]["USD per million output tokens"] == "-"
    assert by_name["int8"]["USD per million output tokens"].startswith("0.66 [")
    ranks = next(each for caption, each in tables.items() if caption.startswith("Places by"))
    places = {row[0]: [cell[0] for cell in row[1:]] for row in ranks["rows"]}
    assert places["awq"] == ["2", "3"] and places["int8"] == ["3", "1"]


def test_the_figures_are_drawn_and_say_what_they_show(chromium, decided):
    chromium.open(page(decided))
    drawn = {each["id"]: each for each in chromium.ask(DRAWINGS)}
    assert set(drawn) == {"figure-front", "figure-bars"}
    assert all(each["marks"] > 20 and each["height"] > 100 for each in drawn.values())
    assert all(each["label"] and each["caption"] for each in drawn.values())


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out(chromium, decided, width):
    chromium.open(page(decided), width=width)
    assert chromium.ask(OVERFLOW) == 0
