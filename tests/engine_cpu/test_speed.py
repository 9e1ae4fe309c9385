"""Tokens/s of real engines: measured as asked, and what cannot be measured is named."""

import json

import psutil
import pytest

from serve_app.domain.errors import BuildError
from serve_app.quantize.catalogue import recipe
from serve_app.quantize.runner import run_job
from serve_app.reference import large
from serve_app.reference.locate import resolve
from serve_app.reference.speed import result_from_json, result_to_json, speeds
from serve_app.reference.speed_run import Contestant, Plan, run_speed

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

GOAL = 1.5
ROUNDS = 9
"""As many blocks as a shared memory bus needs; judged once, by their median."""


def contestant(name: str, dtype: str) -> Contestant:
    return Contestant(name, resolve(f"reference://{name}"), "vllm", dtype)


def test_two_engines_side_by_side_and_one_that_cannot_load(family, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    everyone = [
        contestant("baseline", "bfloat16"),
        contestant("gptq", "float16"),
        Contestant("broken", tmp_path, "vllm", "bfloat16"),
    ]
    plan = Plan(rounds=1, batches=(1, 4), tokens=8)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    result = run_speed(everyone, "baseline", plan, label="tiny")
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert not left, "engine processes outlived the run"
    assert set(result.failed) == {"broken"}
    assert "ended with exit code" in result.failed["broken"]
    cells = {(s.variant, s.batch): s for s in result.samples}
    assert set(cells) == {(v, b) for v in ("baseline", "gptq") for b in (1, 4)}
    assert all(cell.tokens == 8 * batch for (_, batch), cell in cells.items())
    assert all(0 < cell.cpu_s <= cell.wall_s * 2 for cell in cells.values())
    assert "CPUWNA16LinearKernel" in result.facts["gptq"]["kernel.o_proj"]
    assert result_from_json(json.loads(json.dumps(result_to_json(result)))) == result


def test_a_baseline_that_cannot_load_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BuildError, match="the baseline cannot be measured: base: ended with"):
        run_speed([Contestant("base", tmp_path, "vllm", "bfloat16")], "base", Plan(), label="none")


def test_four_bits_are_worth_it_where_weights_decide():
    """Issue 5: on the 182M shape, 4-bit is at least 1.5x bf16 at batch 1 on CPU.

    Asked of GGUF Q4_0 in llama.cpp, which has integer kernels for every x86 CPU with AVX2, against
    bf16 in vLLM (its faster bf16: oneDNN) and against 16 bits in llama.cpp itself. Where our kernel
    runs in vLLM (AVX-512, no AMX), W4A16 there as well. Ratios are medians of interleaved blocks,
    of tokens per CPU second: engines have one thread, so that is tokens/s of a core of one's own,
    also where the core is shared.
    """
    folders = large.ensure_variants(
        [recipe(name) for name in ("baseline", "rtn", "gguf-f16", "gguf-q4-0")], run_job
    )
    everyone = [
        Contestant("baseline", folders["baseline"], "vllm", "bfloat16"),
        Contestant("rtn", folders["rtn"], "vllm", "bfloat16"),
        Contestant("gguf-f16", folders["gguf-f16"], "llamacpp", "float16"),
        Contestant("gguf-q4-0", folders["gguf-q4-0"], "llamacpp", "float16"),
    ]
    plan = Plan(rounds=ROUNDS, batches=(1,), tokens=32)
    result = run_speed(everyone, "baseline", plan, label=large.LABEL)
    assert not result.failed
    of = {each.variant: each.cpu_ratio for each in speeds(result.samples, "baseline")}
    within = {each.variant: each.cpu_ratio for each in speeds(result.samples, "gguf-f16")}
    need = {
        "GGUF Q4_0 (llama.cpp) to bf16 (vLLM)": of["gguf-q4-0"],
        "GGUF Q4_0 to F16 (both llama.cpp)": within["gguf-q4-0"],
    }
    if "Int4PackLinearKernel" in result.facts["rtn"]["kernel.gate_up_proj"]:
        need["W4A16 to bf16 (both vLLM)"] = of["rtn"]
    else:
        print(f"vLLM's own 4-bit kernel runs here, {of['rtn']}: shown, not asked for")
    print(need)
    assert all(ratio.n == ROUNDS for ratio in need.values()), need
    slow = {what: ratio for what, ratio in need.items() if ratio.median < GOAL}
    assert not slow, f"need {GOAL}x at batch 1 in the median, have {slow} ({result.machine})"
