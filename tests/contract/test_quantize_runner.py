"""The runner against scripted jobs: what it hears, and what becomes of one that dies."""

import stat
from pathlib import Path

import pytest

from serve_app.domain.errors import BuildError
from serve_app.quantize.catalogue import recipe
from serve_app.quantize.order import Item
from serve_app.quantize.runner import run_job

JOB = """#!{python}
import json, os, sys, time
order = json.load(open(sys.argv[-1]))
print("a library says hello", file=sys.stderr)
{preamble}
def tell(name, state, detail=""):
    print(json.dumps(dict(variant=name, state=state, detail=detail)), flush=True)
for item in order["items"]:
    name = item["recipe"]["name"]
    tell(name, "quantizing")
    {body}
    tell(name, "made")
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Run three variants through a scripted job; returns what was heard."""
    import sys

    def run(body="pass", preamble="", base=tmp_path, calibration_file=None):
        script = tmp_path / "python"
        script.write_text(JOB.format(python=sys.executable, body=body, preamble=preamble))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("QUANTIZE_PYTHON", str(script))
        heard = []
        items = [Item(recipe=recipe(n), out=tmp_path / n) for n in ("int8", "gptq", "awq")]
        run_job(base, items, heard.append, calibration_file)
        return [(event.variant, event.state, event.detail) for event in heard]

    return run


def test_every_variant_is_heard_of(job):
    assert [event[:2] for event in job()] == [
        (name, state) for name in ("int8", "gptq", "awq") for state in ("quantizing", "made")
    ]


def test_a_job_that_dies_has_failed_the_variant_it_was_at_and_no_other(job):
    heard = job("if name == 'gptq': print('killed by the kernel', file=sys.stderr); os._exit(137)")
    ends = {name: (state, detail) for name, state, detail in heard if state != "quantizing"}
    assert ends["int8"][0] == ends["awq"][0] == "made"
    assert ends["gptq"][0] == "failed"
    assert "exit code 137" in ends["gptq"][1]
    assert "killed by the kernel" in ends["gptq"][1]


def test_a_variant_that_says_it_failed_is_not_tried_again(job):
    heard = job("if name == 'gptq': tell(name, 'failed', 'no text'); continue")
    assert [event for event in heard if event[0] == "gptq"] == [
        ("gptq", "quantizing", ""),
        ("gptq", "failed", "no text"),
    ]


def test_relative_paths_reach_the_job_that_runs_elsewhere(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jsonl").write_text('{"text": "one"}')
    found = "tell(name, 'failed', open(order['calibration_file']).read() + order['base']); continue"
    heard = job(found, base=Path("."), calibration_file=Path("text.jsonl"))
    assert heard[-1][2] == f'{{"text": "one"}}{tmp_path}'


def test_a_job_that_does_not_even_begin_is_an_error_with_its_last_lines(job):
    with pytest.raises(BuildError, match=r"(?s)exit code 3 .*a library says hello"):
        job(preamble="sys.exit(3)")


def test_the_layer_that_the_quantizer_is_at_is_told(job):
    """Events and progress come by two pipes: which is read first is the machine's mood."""
    body = """
    for layer in range(1, 33):
        sys.stderr.write(f"({layer}/32): Calibrating:  50%|#####     | 48/96\\r")
        sys.stderr.flush()
        time.sleep(0.03)
    """
    told = [detail for name, state, detail in job(body.strip()) if name == "int8" and detail]
    assert told
    assert {f"layer {layer} of 32" for layer in range(1, 33)} >= set(told)
