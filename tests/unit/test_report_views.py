"""Every view shows the numbers of the result: JSON, CSV, Markdown, terminal."""

import csv
import io
import math
from dataclasses import replace

import msgspec
import pytest
from rich.console import Console

from loadtests.records.manifest import RunFiles
from loadtests.report.compare import compare_folders, print_comparison, verdict_of
from loadtests.report.document import encode, json_schema, read_report, report_of
from loadtests.report.markdown import render_markdown
from loadtests.report.result import read_result
from loadtests.report.rows import TERMINAL_HEADERS, percentile_name, terminal_cells_of
from loadtests.report.terminal import MARKED, print_result, print_table
from loadtests.report.tidy import HEADER, render_csv
from serve_app.domain.errors import ConfigError
from tests.fakes import run_folders
from tests.fakes.run_folders import campaign, write_run, write_search

PLAN = campaign(
    stages=[
        {"name": "low", "kind": "poisson", "rate_per_s": 10, "duration_s": 4},
        {"name": "high", "kind": "poisson", "rate_per_s": 30, "duration_s": 4},
    ],
    blocks=2,
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
    assert data["manifest"]["variants"]["fp8"]["facts"]["kernel"] == "fp8-gemm"
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
    plan = PLAN | {"blocks": 5}
    before = write_run(tmp_path / "before", plan)
    with pytest.MonkeyPatch.context() as patch:  # the fake engine's table of speeds
        patch.setitem(run_folders.SPEED, "fp8", 1.5)
        after = write_run(tmp_path / "after", plan)
    found = compare_folders(before, after)
    assert found.exit_code == 1 and verdict_of(found).startswith("WORSE: ")
    text = printed(print_comparison, found, width=140)
    assert "▼ worse" in text
    back = compare_folders(after, before)
    assert any(each.change == "better" and each.variant == "fp8" for each in back.changes)
