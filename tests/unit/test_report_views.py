"""Every view shows the numbers of the result: JSON, CSV, Markdown, terminal."""

import csv
import html
import io
import math
from dataclasses import replace

import msgspec
import pytest
from rich.console import Console

from loadtests.analyse.metrics import FORMULAS
from loadtests.analyse.nouns import Verdict
from loadtests.records.manifest import RunFiles, VariantFacts
from loadtests.report.compare import compare_folders, print_comparison, verdict_of
from loadtests.report.document import encode, json_schema, read_report, report_of
from loadtests.report.markdown import render_markdown
from loadtests.report.page import render_page
from loadtests.report.provenance import facts_of, facts_table, split_facts
from loadtests.report.result import read_result
from loadtests.report.rows import TERMINAL_HEADERS, percentile_name, terminal_cells_of
from loadtests.report.terminal import MARKED, print_result, print_table
from loadtests.report.tidy import HEADER, render_csv
from loadtests.report.write import write_report
from serve_app.domain.errors import ConfigError
from tests.fakes import run_folders
from tests.fakes.run_folders import campaign, write_run, write_search

PLAN = campaign(
    stages=[
        {"name": "low", "kind": "poisson", "rate_per_s": 10, "duration_s": 4},
        {"name": "high", "kind": "poisson", "rate_per_s": 30, "duration_s": 4},
    ],
    blocks=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("views") / "run", PLAN)


@pytest.fixture(scope="module")
def result(folder):
    return read_result(folder)


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    rates = {"bf16": (8.0, 27.0), "int8<b>": (8.0, 27.0)}
    return read_result(write_search(tmp_path_factory.mktemp("views") / "search", rates))


def printed(show, *arguments, width=80):
    out = io.StringIO()
    show(*arguments, Console(file=out, width=width))
    return out.getvalue()


def test_the_json_comes_back_as_it_went_but_for_infinities(tmp_path, result):
    report = report_of(result)
    path = tmp_path / "report.json"
    path.write_bytes(encode(report))
    again = read_report(path)
    assert encode(again) == encode(report)
    assert again.manifest == report.manifest and again.verdict == report.verdict
    infinite = [
        (before, after)
        for row, row_again in zip(report.summaries, again.summaries, strict=True)
        for before, after in zip(
            row.latencies["ttft_user_ms"].with_failures,
            row_again.latencies["ttft_user_ms"].with_failures,
            strict=True,
        )
        if before.value is not None and math.isinf(before.value)
    ]
    assert infinite
    for _, after in infinite:
        assert after.value is None and after.reason.startswith("infinite")


def test_the_json_has_its_provenance_and_a_schema(result):
    data = msgspec.json.decode(encode(report_of(result)))
    assert data["schema_version"] == data["manifest"]["schema_version"]
    assert data["manifest"]["inputs"] == {"prompts.jsonl": "9f" * 32}
    assert data["manifest"]["variants"]["fp8"]["facts"]["kernel.qkv_proj"] == "fp8-gemm"
    assert data["formulas"]["tpot_ms"]
    schema = json_schema()
    assert set(schema["$defs"]["Report"]["required"]) >= set(data) - {"ending"}


@pytest.mark.parametrize(
    ("text", "reason"), [(b"{}", "not a load report"), (None, "not a load report")]
)
def test_what_is_no_report_is_refused(tmp_path, text, reason):
    path = tmp_path / "report.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ConfigError, match=reason):
        read_report(path)


def test_a_report_of_another_version_is_refused(tmp_path, result):
    other = msgspec.structs.replace(report_of(result), schema_version=99)
    path = tmp_path / "report.json"
    path.write_bytes(encode(other))
    with pytest.raises(ConfigError, match="have 99: make it again"):
        read_report(path)


def test_the_csv_has_one_row_per_statistic_at_full_precision(result):
    rows = list(csv.DictReader(io.StringIO(render_csv(result))))
    assert tuple(rows[0]) == HEADER
    keys = ("stage", "variant", "metric", "statistic", "failures")
    by_key = {tuple(row[k] for k in keys): row for row in rows}
    assert len(by_key) == len(rows)
    for summary in result.summaries:
        for name, latency in summary.latencies.items():
            for failures, quantiles in (
                ("left_out", latency.quantiles),
                ("infinite", latency.with_failures or ()),
            ):
                for q in quantiles:
                    key = (summary.stage, summary.variant, name, percentile_name(q.p), failures)
                    text = by_key[key]["value"]
                    assert (float(text) if text else None) == q.value
                    assert by_key[key]["n"] == str(q.n)
    values = [row["value"] for row in rows]
    assert "inf" in values and "" in values  # infinite and missing are not the same


def test_a_spreadsheet_runs_no_name(tmp_path):
    plan = PLAN | {"target": {"model": "m", "variants": ["=cmd()", "bf16"]}, "blocks": 1}
    with pytest.MonkeyPatch.context() as patch:  # the fake engine's table of speeds
        patch.setitem(run_folders.SPEED, "=cmd()", 1.0)
        found = read_result(write_run(tmp_path / "run", plan))
    rows = list(csv.DictReader(io.StringIO(render_csv(found))))
    assert {row["variant"] for row in rows} == {"'=cmd()", "bf16"}


def test_the_markdown_says_the_verdict_first_and_escapes_names(result):
    text = render_markdown(result, [])
    head, details = text.split("## Every number")
    assert head.index(result.verdict.upper()) < head.index("| variant")
    assert "int8&lt;b&gt;" in text and "int8<b>" not in text.split("````yaml")[0]
    assert "## Formulas" in details and "t_first - t_sched" in details
    n_columns = {line.count(" | ") for line in head.splitlines() if line.startswith("| bf16")}
    assert len(n_columns) == 1
    assert len(head.splitlines()) < 60  # a pull request has no room for more


def test_the_terminal_table_fits_in_80_columns(result):
    text = printed(print_table, result)
    assert max(map(len, text.splitlines())) <= 80
    lines = text.splitlines()
    for row in result.summaries:
        wanted = (row.variant, "1,234,567", *terminal_cells_of(row))
        plain = [line.replace("▲", "").replace("▼", "").split() for line in lines]
        assert list(wanted) in plain, wanted
    assert "failed: " in text and len(TERMINAL_HEADERS) == 7


def test_the_terminal_says_the_verdict_and_where_the_report_is(result):
    text = printed(print_result, result, width=200)
    assert text.splitlines()[-1] == f"Report: {RunFiles(result.folder).report_html}"
    assert text.splitlines()[-2].startswith(result.verdict.upper())


def test_marks_are_those_of_the_comparison(result):
    lines = printed(print_table, result).splitlines()
    table = "\n".join(line for line in lines if "by paired blocks" not in line)
    shown = [c.change for c in result.comparisons if (c.metric, c.p) in MARKED]
    assert (table.count("▲"), table.count("▼")) == (shown.count("better"), shown.count("worse"))
    assert "▲" in table or "▼" in table
    none = printed(print_table, replace(result, comparisons=()))
    assert "▲" not in none and "▼" not in none


def test_a_search_prints_its_brackets(search):
    text = printed(print_result, search, width=200)
    assert "highest rate at which the SLO holds" in text
    assert "holds at 8.00, not at 27.0 requests/s" in text and "int8<b> at 27/s" in text


def test_names_are_no_markup_of_the_terminal(result):
    columns = {"[bold]x": {"bf16": "[red]1"}}
    manifest = msgspec.structs.replace(result.manifest, columns=columns)
    text = printed(print_table, replace(result, manifest=manifest), width=100)
    assert "[bold]x" in text and "[red]1" in text


def test_a_run_is_the_same_as_itself(folder):
    found = compare_folders(folder, folder)
    text = printed(print_comparison, found, width=140)
    assert "low: paired by block" in text and "high: paired by block" in text
    assert "worse" not in text and "better" not in text
    assert verdict_of(found).startswith(("NOT WORSE", "INCONCLUSIVE"))


def test_a_slower_run_is_worse(tmp_path):
    before = write_run(tmp_path / "before", PLAN)
    with pytest.MonkeyPatch.context() as patch:  # the fake engine's table of speeds
        patch.setitem(run_folders.SPEED, "fp8", 1.5)
        after = write_run(tmp_path / "after", PLAN)
    found = compare_folders(before, after)
    assert found.exit_code == 1 and verdict_of(found).startswith("WORSE: ")
    text = printed(print_comparison, found, width=140)
    assert "▼ worse" in text
    back = compare_folders(after, before)
    assert any(each.change == "better" and each.variant == "fp8" for each in back.changes)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Too few requests for P99; notes of the plan and of a row."""
    plan = campaign(
        target={"model": "m", "variants": ["bf16", "fp8"], "baseline": "bf16"},
        stages=[{"name": "s", "kind": "poisson", "rate_per_s": 10, "duration_s": 4}],
        blocks=1,
    )
    found = read_result(write_run(tmp_path_factory.mktemp("views") / "small", plan))
    rows = [msgspec.structs.replace(row, notes=("a row's note",)) for row in found.summaries]
    manifest = msgspec.structs.replace(found.manifest, notes=("3 of 9 requests were cut",))
    return replace(found, summaries=tuple(rows), manifest=manifest)


VIEWS = {
    "html": lambda result: render_page(result, [], []),
    "markdown": lambda result: render_markdown(result, []),
    "terminal": lambda result: printed(print_result, result, width=500),
}


@pytest.mark.parametrize("view", VIEWS)
def test_why_a_percentile_is_missing_is_written_under_its_table(small, view):
    text = html.unescape(VIEWS[view](small))
    n = small.summaries[0].n_planned
    assert n < 100 and f"-: P99: need n >= 100, have {n}." in text
    if view != "terminal":  # it shows no intervals
        assert f"P99.9: need n >= 1000, have {n}" in text
        assert "…: on that side the sample has no bound." in text


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_has_the_notes_of_the_plan_and_of_the_rows(small, view):
    text = html.unescape(VIEWS[view](small))
    assert "3 of 9 requests were cut" in text and "s, bf16: a row's note" in text


@pytest.mark.parametrize("view", VIEWS)
def test_an_invalid_row_has_its_reason_once(small, view):
    why = "lag P99 80 ms: a core of its own"
    rows = [
        msgspec.structs.replace(
            row, is_valid=False, invalid_reasons=(why,), slo_verdict=Verdict.INVALID, slo_reason=why
        )
        for row in small.summaries
    ]
    text = html.unescape(VIEWS[view](replace(small, summaries=tuple(rows))))
    assert text.count(f"s, bf16: {why}") == 1
    assert f"s, bf16: invalid: {why}" not in text


def test_the_facts_of_the_variants_are_in_the_report(small):
    facts = facts_of(small.manifest)
    differing, shared = split_facts(facts)
    assert set(differing) == {"kernel.qkv_proj"} and shared["attention"] == "FLASH_ATTN"
    table = facts_table(facts)
    assert table.header == ("fact", "bf16", "fp8") and len(table.rows) == len(facts) == 17
    page, text = html.unescape(VIEWS["html"](small)), html.unescape(VIEWS["markdown"](small))
    for name, of in facts.items():
        assert f">{name}</button>" not in page  # names are rows: there are many of them
        assert f">{name}</th>" in page and all(each in page for each in of.values())
        assert name in text and all(each in text for each in of.values())
    assert "| kernel.qkv_proj | bf16-gemm | fp8-gemm |" in text
    assert text.count("FLASH_ATTN") == 1


def test_a_variant_that_says_nothing_of_itself_has_dashes(small):
    said = {"a": VariantFacts(replicas=2, facts={"engine": "x"}), "b": VariantFacts()}
    facts = facts_of(msgspec.structs.replace(small.manifest, variants=said))
    assert facts == {"replicas": {"a": "2", "b": "-"}, "engine": {"a": "x", "b": "-"}}
    assert facts_of(msgspec.structs.replace(small.manifest, variants={})) == {}


def test_markdown_calls_nobody_to_the_pull_request(small):
    manifest = msgspec.structs.replace(small.manifest, notes=("@octocat `x` [a](b) a@b.c",))
    text = render_markdown(replace(small, manifest=manifest), [])
    assert "@octocat" not in text and "@b.c" not in text and "@&#8203;octocat" in text


def test_the_page_announces_nothing_as_it_were_new(result):
    assert 'role="status"' not in render_page(result, [], [])


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["stages", "search"])
def test_every_formula_is_in_the_report(result, search, view, name):
    text = html.unescape(VIEWS[view]({"stages": result, "search": search}[name]))
    if view != "terminal":
        missing = [each for each in FORMULAS.values() if " ".join(each.split()) not in text]
        assert missing == []


STAGE = {"name": "s", "kind": "poisson", "rate_per_s": 20, "duration_s": 2}
TWO = {"model": "m", "variants": ["bf16", "int8<b>"], "baseline": "bf16"}
FOLDERS = {
    "one variant, no slo": {"target": {"model": "m", "variants": ["bf16"]}, "slo": None},
    "two blocks": {"blocks": 2},
    "closed loop": {
        "stages": [{"name": "s", "kind": "concurrency", "concurrency": 4, "duration_s": 2}]
    },
    "ramp": {
        "stages": [{"name": "s", "kind": "ramp", "from_per_s": 1, "to_per_s": 10, "duration_s": 2}]
    },
    "trace": {
        "stages": [
            {"name": "s", "kind": "trace", "format": "azure", "path": "t.csv", "duration_s": 2}
        ]
    },
    "constant, not gated": {"stages": [STAGE | {"kind": "constant", "gate": False}]},
    "one request": {"stages": [STAGE | {"rate_per_s": 0.5}]},
    "all failed": {},
    "half failed": {"blocks": 2},
    "killed": {},
    "nothing ran": {},
    "search": {},
    "search, one rate": {},
    "search, nothing ran": {},
}
TITLES = {
    "closed loop": "s: closed loop, 4 users (latencies hide waiting, no tail to trust)",
    "ramp": "s: ramp 1 to 10 requests/s",
    "trace": "s: trace ",
}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_kind_of_folder_has_all_its_views(tmp_path, name):
    folder = tmp_path / "run"
    share = {"all failed": 100.0, "half failed": 0.2}.get(name)
    with pytest.MonkeyPatch.context() as patch:  # the fake engine's table of failures
        for variant in run_folders.SPEED if share else ():
            patch.setitem(run_folders.FAILURES, variant, share)
        if name.startswith("search"):
            write_search(folder, {"bf16": (8.0, 27.0)} if name == "search" else {"bf16": (8.0,)})
        else:
            keep = {"killed": 1, "nothing ran": 0}.get(name)
            plan = campaign(target=TWO, stages=[STAGE], blocks=1) | FOLDERS[name]
            write_run(folder, plan, keep=keep)
    if name == "search, nothing ran":
        for each in ("cells", "records", "runs"):
            getattr(RunFiles(folder), each).unlink()
    result = write_report(folder)
    files = RunFiles(folder)
    texts = {
        "html": files.report_html.read_text(encoding="utf-8"),
        "markdown": files.report_md.read_text(encoding="utf-8"),
        "terminal": printed(print_result, result),
    }
    for text in texts.values():
        assert result.verdict.upper() in text
        assert (
            "Traceback" not in text and " nan" not in text and "None" not in text.split("````")[0]
        )
        assert TITLES.get(name, "") in " ".join(text.split())
    assert max(map(len, texts["terminal"].split("Report:")[0].splitlines())) <= 80
    assert read_report(files.report_json).status and files.summary_csv.stat().st_size
