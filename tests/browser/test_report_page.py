"""`report.html` in a real browser: what the reader sees is what `report.json` says."""

from pathlib import Path

import pytest

from loadtests.records.manifest import RunFiles
from loadtests.report.document import Report, read_report
from loadtests.report.rows import bracket, cells_of
from loadtests.report.write import write_report
from tests.fakes import run_folders
from tests.fakes.run_folders import campaign, write_run, write_search

TABLE = """Array.from(document.querySelectorAll("table")).map(table => ({
  caption: table.caption.textContent,
  header: Array.from(table.tHead.rows[0].cells, cell => cell.textContent),
  rows: Array.from(table.tBodies[0].rows, row => Array.from(row.cells, c => c.textContent)),
}))"""
DRAWINGS = """Array.from(document.querySelectorAll("figure"), figure => {
  const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
  const caption = figure.querySelector("figcaption").textContent;
  return {id: figure.id, width: box.width, height: box.height, caption: caption,
          marks: svg.querySelectorAll("path, use, image").length,
          label: svg.getAttribute("aria-label")};
})"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
STAGES = {"comparison", "percentiles", "ecdf", "load", "timeline", "scraped", "errors"}
SEARCH = {"knee", "load", "timeline", "scraped", "errors"}


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "stages")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    folder = write_search(tmp_path_factory.mktemp("runs") / "search")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "killed", keep=7)
    write_report(folder)
    return folder


def page_of(folder: Path) -> Path:
    return RunFiles(folder).report_html


def report_of(folder: Path) -> Report:
    return read_report(RunFiles(folder).report_json)


def test_the_summary_tables_have_the_numbers_of_the_json(chromium, stages):
    chromium.open(page_of(stages))
    tables = [t for t in chromium.ask(TABLE) if t["caption"].startswith("Summary of")]
    shown = {
        (t["caption"].split()[2].rstrip(":"), row[0]): row for t in tables for row in t["rows"]
    }
    report = report_of(stages)
    assert len(shown) == len(report.summaries) == 12
    for row in report.summaries:
        ttft_p50 = row.latencies["ttft_user_ms"].with_failures[0].value
        n_columns = len(report.manifest.columns)
        cells = shown[row.stage, row.variant][1 + n_columns :]
        assert cells[0] == f"{row.n_ok}/{row.n_planned}"
        assert float(cells[1]) == pytest.approx(ttft_p50, rel=0.01)
        # the JSON holds null for infinite and for missing, so the page says more
        known = [(a, b) for a, b in zip(cells, cells_of(row), strict=False) if b != "-"]
        assert len(known) >= 6 and all(a == b for a, b in known)


def test_the_comparison_table_has_every_comparison(chromium, stages):
    chromium.open(page_of(stages))
    (table,) = [t for t in chromium.ask(TABLE) if t["caption"].startswith("Comparisons with bf16")]
    comparisons = report_of(stages).comparisons
    assert len(table["rows"]) == len(comparisons) > 0
    column = table["header"].index("change")
    for row, each in zip(table["rows"], comparisons, strict=True):
        assert (row[0], row[1]) == (each.stage, each.variant)
        assert row[column].endswith(each.change)


def test_a_search_shows_its_brackets(chromium, search):
    chromium.open(page_of(search))
    (table,) = [t for t in chromium.ask(TABLE) if t["caption"].startswith("Highest rate")]
    found = report_of(search).saturation
    assert [row[:3] for row in table["rows"]] == [
        [each.variant, bracket(each), each.verdict] for each in found
    ]


@pytest.mark.parametrize(("kind", "names"), [("stages", STAGES), ("search", SEARCH)])
def test_every_figure_is_drawn_and_described(chromium, request, kind, names):
    chromium.open(page_of(request.getfixturevalue(kind)))
    drawn = chromium.ask(DRAWINGS)
    assert {each["id"] for each in drawn} == {f"figure-{name}" for name in names}
    for each in drawn:
        assert each["width"] > 600 and each["height"] > 80, each
        assert each["marks"] > 10 and each["label"] and each["caption"], each


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("kind", ["stages", "search", "killed"])
def test_it_fits_and_the_console_is_silent(chromium, request, kind, width, scheme):
    chromium.open(page_of(request.getfixturevalue(kind)), width=width, scheme=scheme)
    chromium.run("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert chromium.ask(OVERFLOW) <= 0
    assert chromium.console() == []
    ground = chromium.ask("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_what_the_target_says_is_text(chromium, stages):
    """A variant is called `int8<b>`, an error detail is a script: neither is markup or runs."""
    chromium.open(page_of(stages))
    assert chromium.ask("document.querySelectorAll('b').length") == 0
    assert chromium.ask("document.querySelectorAll('script').length") == 1
    assert "<script>console.error('injected')" in str(chromium.ask("document.body.textContent"))
    assert chromium.console() == []


def test_no_foreign_script_runs(chromium, stages):
    """Were a name ever not escaped, the page's policy would still refuse to run it."""
    chromium.open(page_of(stages))
    chromium.run(
        "const s = document.createElement('script'); s.textContent = 'window.was_run = true';"
        "document.body.append(s);"
    )
    assert chromium.ask("window.was_run === undefined")
    assert "Content Security Policy" in str(chromium.console())


def test_a_heading_sorts_its_table_both_ways(chromium, stages):
    chromium.open(page_of(stages))
    find = (
        "Array.from(document.querySelectorAll('table'))"
        ".find(t => t.caption.textContent.startsWith('Summary of heavy'))"
    )
    button = "Array.from(t.querySelectorAll('th button')).find(b => b.textContent === 'TTFT P95')"
    press = f"const t = {find}; {button}.click();"
    names = f"Array.from({find}.tBodies[0].rows, row => row.cells[0].textContent)"
    chromium.run(press)
    rising = chromium.ask(names)
    assert rising[0] == "fp8" and rising[-1] == "int8<b>"  # the last is infinite
    chromium.run(press)
    assert chromium.ask(names) == rising[::-1]


def test_a_killed_run_says_so_first(chromium, killed):
    chromium.open(page_of(killed))
    headline = chromium.ask("document.querySelector('.verdict').textContent")
    assert "INCONCLUSIVE: the run is partial" in headline
    assert "PARTIAL: it was killed after 7 of 72 cells" in headline


ONE_STAGE = {"name": "s", "kind": "poisson", "rate_per_s": 20, "duration_s": 2}
ODD = {
    "one variant, no slo": {"target": {"model": "m", "variants": ["bf16"]}, "slo": None},
    "closed loop": {
        "stages": [{"name": "s", "kind": "concurrency", "concurrency": 4, "duration_s": 2}]
    },
    "all failed": {},
    "nothing ran": {},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_runs_have_a_page_too(chromium, tmp_path, name):
    plan = campaign(stages=[ONE_STAGE], blocks=1) | ODD[name]
    with pytest.MonkeyPatch.context() as patch:  # the fake engine's table of failures
        if name == "all failed":
            for variant in run_folders.SPEED:
                patch.setitem(run_folders.FAILURES, variant, 100.0)
        folder = write_run(tmp_path / "run", plan, keep=0 if name == "nothing ran" else None)
    result = write_report(folder)
    assert (result.summaries == ()) == (name == "nothing ran")
    chromium.open(page_of(folder), width=400)
    assert chromium.ask("document.querySelector('.verdict .answer').textContent")
    assert chromium.ask(OVERFLOW) <= 0
    assert chromium.console() == []
    for each in chromium.ask(DRAWINGS):
        assert each["height"] > 80


def test_the_page_is_one_small_file(stages):
    text = page_of(stages).read_text(encoding="utf-8")
    assert len(text) < 3_000_000
    assert "src=" not in text and "@import" not in text
    links = [part.split('"')[0] for part in text.split('href="')[1:]]
    assert all(link.startswith(("#", "data:")) for link in links), links
