"""The result is read from a run's folder alone, whatever state the run left it in."""

import pytest

from loadtests.analyse.nouns import Verdict
from loadtests.records.manifest import Ending, EndReason, RunFiles
from loadtests.report.findings import headlines, status_line, trust_reasons, verdict_line
from loadtests.report.result import CampaignResult, read_result
from serve_app.domain.errors import ConfigError
from tests.fakes.run_folders import FakeRun, campaign, write_run, write_search

SMALL = campaign(
    target={"model": "m", "variants": ["bf16", "fp8"], "baseline": "bf16"},
    stages=[{"name": "only", "kind": "poisson", "rate_per_s": 30, "duration_s": 4}],
    blocks=2,
    slo={"ttft_ms": 5000, "attainment": 0.9},
)
N_CELLS = 4


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", SMALL)


def cut(path, n_bytes):
    path.write_bytes(path.read_bytes()[:-n_bytes])


def test_a_whole_run(folder):
    result = read_result(folder)
    assert [(row.stage, row.variant) for row in result.summaries] == [
        ("only", "bf16"),
        ("only", "fp8"),
    ]
    assert result.n_cells_done == result.n_cells == N_CELLS
    assert not result.is_partial and result.is_valid and result.problems == ()
    assert result.verdict is Verdict.PASS
    assert verdict_line(result) == "PASS: the SLO holds at every stage that counts"
    assert status_line(result).startswith("VALID: the client kept its schedule (lag P99 at most ")


def test_a_killed_run_is_partial_and_its_whole_cells_count(folder):
    files = RunFiles(folder)
    files.ending.unlink()
    cut(files.runs, 10)
    cut(files.records, 10)
    result = read_result(folder)
    assert result.is_partial and not result.is_valid
    assert result.n_cells_done == N_CELLS - 1 and len(result.summaries) == 2
    assert result.verdict is Verdict.INCONCLUSIVE
    assert status_line(result).startswith("PARTIAL: it was killed after 3 of 4 cells; VALID")


@pytest.mark.parametrize("kept", [(), ("cells",), ("cells", "records")])
def test_a_run_killed_before_its_first_cell_was_whole(folder, kept):
    files = RunFiles(folder)
    files.ending.unlink()
    for name in {"cells", "records", "runs", "samples"} - set(kept):
        getattr(files, name).unlink()
    result = read_result(folder)
    assert (result.summaries, result.comparisons, result.n_cells_done) == ((), (), 0)
    assert result.verdict is Verdict.INCONCLUSIVE and headlines(result) == ()
    assert status_line(result) == (
        "PARTIAL: it was killed after 0 of 4 cells; NO RESULT: no cell ran to its end"
    )


@pytest.mark.parametrize(
    ("reason", "verdict", "text"),
    [
        (EndReason.INTERRUPTED, Verdict.INCONCLUSIVE, "PARTIAL: it was interrupted after 4"),
        (EndReason.SERVER_GONE, Verdict.INCONCLUSIVE, "PARTIAL: the server was gone after 4"),
        (EndReason.WORKER_LOST, Verdict.INVALID, "INVALID: worker_lost: it said why"),
        (EndReason.FAILED, Verdict.INVALID, "INVALID: failed: it said why"),
    ],
)
def test_how_a_run_ended_decides_what_it_is_worth(folder, reason, verdict, text):
    RunFiles(folder).write_ending(Ending(reason=reason, detail="it said why"))
    result = read_result(folder)
    assert result.is_partial and not result.is_valid
    assert result.verdict is verdict
    assert text in status_line(result)
    assert any("it said why" in each for each in trust_reasons(result))


def test_a_short_shard_makes_a_complete_run_invalid(folder):
    files = RunFiles(folder)
    lines = files.records.read_bytes().splitlines(keepends=True)
    files.records.write_bytes(b"".join(lines[:-1]))
    result = read_result(folder)
    assert result.verdict is Verdict.INVALID and not result.is_valid
    assert any("lost records" in each for each in result.problems)


def test_a_line_that_is_no_record_is_named_and_what_is_before_it_counts(folder):
    files = RunFiles(folder)
    lines = files.runs.read_bytes().splitlines(keepends=True)
    files.runs.write_bytes(b"".join([*lines[:2], b"\x00\xff{}\n", *lines[2:]]))
    result = read_result(folder)
    assert result.n_cells_done == 1
    assert any("runs.jsonl: line 3 cannot be read" in each for each in result.problems)
    assert result.verdict is Verdict.INVALID


def test_a_run_that_says_it_is_complete_has_all_its_cells(tmp_path):
    run = FakeRun(tmp_path / "run", SMALL)
    run.write_manifest(3)
    run.add_cell("only", 0, "bf16", 30, 4)
    run.files.write_ending(Ending(reason=EndReason.COMPLETE))
    result = read_result(tmp_path / "run")
    assert "1 of 3 planned cells" in result.problems[0]
    assert result.verdict is Verdict.INVALID


def test_an_ungated_stage_does_not_decide(tmp_path):
    strict = SMALL | {"slo": {"ttft_ms": 1}}
    ungated = strict | {"stages": [SMALL["stages"][0] | {"gate": False}]}
    found = [read_result(write_run(tmp_path / str(i), c)) for i, c in enumerate((strict, ungated))]
    assert [each.verdict for each in found] == [Verdict.FAIL, Verdict.PASS]


def test_a_search_is_judged_by_its_brackets(tmp_path):
    result = read_result(write_search(tmp_path / "run", {"bf16": (8, 27), "fp8": (8,)}))
    assert [each.variant for each in result.saturation] == ["bf16", "fp8", "awq", "int8<b>"]
    assert result.comparisons == () and result.n_cells is None and not result.is_partial
    assert result.verdict is Verdict.INCONCLUSIVE
    first = headlines(result)[0].text
    assert first == "bf16: the SLO holds at 8.00, not at 27.0 requests/s (not confirmed)"


def test_what_is_no_run_is_the_callers_fault(tmp_path, folder):
    with pytest.raises(ConfigError, match="not the folder of a load run"):
        read_result(tmp_path)
    manifest = RunFiles(folder).manifest
    manifest.write_bytes(
        manifest.read_bytes().replace(b'"schema_version": 2', b'"schema_version": 1')
    )
    with pytest.raises(ConfigError, match="need schema version 2, have 1"):
        read_result(folder)


def test_the_headline_names_who_is_better_where(tmp_path):
    plan = campaign(
        target={"model": "m", "variants": ["bf16", "fp8", "int8<b>"], "baseline": "bf16"},
        stages=[
            {"name": "low", "kind": "poisson", "rate_per_s": 20, "duration_s": 5},
            {"name": "high", "kind": "poisson", "rate_per_s": 30, "duration_s": 5},
        ],
        blocks=5,
    )
    result: CampaignResult = read_result(write_run(tmp_path / "run", plan))
    by_variant = {line.text.split()[0].rstrip(":"): line for line in headlines(result)}
    assert by_variant["fp8"].tone == "better"
    assert "fp8 is better than bf16" in by_variant["fp8"].text
    assert "TPOT P50 0.7" in by_variant["fp8"].text
    assert by_variant["int8<b>"].tone == "worse"
