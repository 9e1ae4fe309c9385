"""`quantile family` whole: variants of three engines behind one endpoint, all but one asleep.

In a folder of its own: pytest ends the Serve of tests/engine_cpu before this one starts.
"""

import subprocess
import sys

import pytest

from serve_app.domain.quality import decode_report
from serve_app.domain.verdict import Verdict
from serve_app.quantize.catalogue import recipes
from serve_app.quantize.gate import Candidate
from serve_app.quantize.judging import stored_result
from serve_app.reference.locate import TWIN_SUFFIX, links_dir, resolve

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
NAMES = ("gptq", "gguf-q4-k-m", "rtn-w3")


def test_every_shipped_recipe_was_made_and_passed_its_gate():
    """`make test` builds them; here nothing may be missing, stale or silently left out."""
    for name, known in recipes().items():
        twin = links_dir() / (name + TWIN_SUFFIX)
        candidate = Candidate(
            known, resolve(f"reference://{name}"), twin.resolve() if twin.is_dir() else None
        )
        result = stored_result(candidate)
        assert result is not None, f"{name} was not judged by this engine version and these limits"
        assert result.passed, (name, result.failures)


def test_one_table_of_bytes_quality_and_speed(tmp_path):
    out = tmp_path / "family"
    command = [sys.executable, "-m", "serve_app.cli", "family", "--rounds", "1", "--out", str(out)]
    command += [word for name in NAMES for word in ("--only", name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (out / "family.md").is_file(), done.stdout[-3000:] + done.stderr[-3000:]
    report = decode_report((out / "quality" / "quality.json").read_bytes(), "quality.json")
    assert done.returncode == any(each.verdict is Verdict.FAIL for each in report.variants)
    assert not report.is_partial
    assert [each.name for each in report.variants] == ["baseline", *NAMES]
    for name in NAMES:
        judged = report[name]
        assert judged.verdict is not Verdict.ERROR, judged.reason
        assert judged.likelihood is not None, judged.likelihood_gap
        assert judged.likelihood.agreement.abs_delta_logprob.value > 0
    damage = {n: report[n].likelihood.agreement.abs_delta_logprob.value for n in NAMES}
    assert damage["gptq"] < damage["rtn-w3"]
    lines = (out / "family.md").read_text().splitlines()
    table = {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}
    assert "vllm, twin" in table["rtn-w3"]
    assert "llamacpp" in table["gguf-q4-k-m"]
    for name in ("baseline", "gptq", "gguf-q4-k-m"):
        speeds = [cell.strip() for cell in table[name].split("|")[-4:-1]]
        assert all(float(cell.replace(",", "")) > 0 for cell in speeds), table[name]
    print("\n".join(lines))
