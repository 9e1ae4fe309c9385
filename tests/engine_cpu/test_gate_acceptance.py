"""A broken variant never passes the gate, an honest one always does, in real vLLM.

`QUANTILE_TEST_GATE_SEEDS` sets how many of each (`make test-gate`: 20; about ten minutes).

Broken: one layer of 21, chosen by seed, of a good checkpoint in the layout of compressed-tensors
(even seeds) or of its tool (odd ones). Honest: GPTQ calibrated on other rows. Each half takes one
core: the honest ones are made while the broken ones are judged. Wrongly made: broken before its
reference and its record were written, which then agree with the wrong weights.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from serve_app.quantize.catalogue import recipe
from serve_app.quantize.gate import Candidate, GateResult, run_gate
from serve_app.quantize.layouts import awq, dequantize, gptq
from serve_app.quantize.runner import quantize_python
from serve_app.quantize.weight_error import weight_errors
from serve_app.quantize.weight_limit import recorded_layers, weigh
from serve_app.reference.build import CHECKPOINT
from serve_app.reference.locate import QUANTIZE_JSON, resolve
from serve_app.reference.logprobs import REFERENCE_NPZ, load_reference, save_reference
from tests.fakes import forward_pass
from tests.fakes.damage import damage

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

MISMADE = {
    "swapped_layers": "gptq", "swapped_scales": "gptq", "swapped_zero_points": "awq",
    "wrong_zero_points": "awq",
}  # fmt: skip
"""What a maker has done to one layer or two, and the recipe that it followed."""

ROOT = Path(__file__).parents[2]
SEEDS = int(os.environ.get("QUANTILE_TEST_GATE_SEEDS", "3"))
NATIVE = {"gptq": gptq, "awq": awq}
DAMAGED = {"shuffled_scales": "gptq", "wrong_zero_points": "awq", "swapped_layers": "gptq"}
"""What is broken, and the recipe whose checkpoint it is broken in: only AWQ's has zero points."""


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """Engines in the gate's own process: 3.5 s for a checkpoint, in place of 25 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        yield


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """The process that makes the honest variants, and their folder."""
    out = tmp_path_factory.mktemp("honest")
    command = [str(quantize_python()), "-m", "tests.fakes.honest_variants"]
    command += ["gptq", str(CHECKPOINT), str(out), str(SEEDS)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (out / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log)
    yield process, out
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[tuple[str, bool], Path]:
    """Good checkpoints by recipe, as they were made and (True) in their tool's own layout."""
    found = {}
    for name, layout in NATIVE.items():
        found[name, False] = source = Path(resolve(f"reference://{name}"))
        found[name, True] = out = tmp_path_factory.mktemp("native") / name
        shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
        layout.write(source, out)
    return found


def judged(candidates: dict[str, Candidate]) -> dict[str, GateResult]:
    results: dict[str, GateResult] = {}
    run_gate(candidates, results.__setitem__)
    assert results.keys() == candidates.keys()
    return results


def test_every_broken_variant_is_caught(good, honest, tmp_path):
    candidates, broken = {}, {}
    for name in NATIVE:
        native = f"{name} in its own layout"
        candidates[native] = Candidate(recipe(name), good[name, True])
    for kind, name in DAMAGED.items():
        for seed in range(SEEDS):
            out = tmp_path / f"{kind}-{seed}"
            layer = damage(good[name, seed % 2 == 1], out, kind, seed)
            broken[f"{kind} {seed} ({layer})"] = Candidate(recipe(name), out)
    results = judged(candidates | broken)
    for name in candidates:
        print(name, results[name].describe())
        assert results[name].passed, results[name]
    for kind in DAMAGED:
        of_kind = {name: results[name] for name in broken if name.startswith(kind)}
        least = min(of_kind, key=lambda name: of_kind[name].engine_mean)
        print(f"least of {len(of_kind)}: {least}: {of_kind[least].describe()}")
    passed = {name: results[name].describe() for name in broken if results[name].passed}
    assert not passed


def write_error(folder: Path, base, dense) -> None:
    """What the job records of the weights that it finds in the container."""
    record = {"weight_error": weight_errors(base, dense).as_json()}
    (folder / QUANTIZE_JSON).write_text(json.dumps(record))


@pytest.mark.parametrize("kind", MISMADE)
def test_every_wrongly_made_variant_is_caught_by_its_weights(kind, good, tmp_path):
    base, name = dequantize(CHECKPOINT, "plain"), MISMADE[kind]
    for seed in range(SEEDS):
        out = tmp_path / f"{kind}-{seed}"
        layer = damage(good[name, False], out, kind, seed)
        write_error(out, base, dequantize(out, "compressed-tensors"))
        found = weigh(recipe(name).gate, recorded_layers(out))
        print(seed, layer, found.layer, found.relative)
        assert found.failures, (seed, layer, found)


def test_a_wrongly_made_variant_computes_what_its_weights_say_and_is_refused(good, tmp_path):
    """The engine agrees with the reference: but for the weights' limit it would be served."""
    base, candidates = dequantize(CHECKPOINT, "plain"), {}
    before = forward_pass.llama(CHECKPOINT, base)
    rows = [list(row) for row in load_reference(good["gptq", False] / REFERENCE_NPZ).tokens]
    for kind in ("swapped_scales", "swapped_zero_points"):
        folder, name = tmp_path / kind, MISMADE[kind]
        damage(good[name, False], folder, kind, seed=0)
        dense = dequantize(folder, "compressed-tensors")
        after = forward_pass.llama(CHECKPOINT, dense)
        save_reference(folder / REFERENCE_NPZ, forward_pass.reference(after, before, rows))
        write_error(folder, base, dense)
        candidates[kind] = Candidate(recipe(name), folder)
    for kind, result in judged(candidates).items():
        print(kind, result.describe(), result.failures)
        assert result.engine_mean < candidates[kind].recipe.gate.engine
        assert any("gate.weights" in failure for failure in result.failures), result


def test_no_honest_variant_is_refused(honest):
    process, out = honest
    assert process.wait(timeout=600) == 0, (out / "log").read_text(errors="replace")[-2000:]
    base = load_reference(Path(resolve("reference://gptq")) / REFERENCE_NPZ)
    rows = [list(row) for row in base.tokens]
    weights = dequantize(CHECKPOINT, "plain")
    before = forward_pass.llama(CHECKPOINT, weights)
    candidates = {}
    for seed in range(SEEDS):
        folder = out / str(seed)
        dense = dequantize(folder, "compressed-tensors")
        after = forward_pass.llama(CHECKPOINT, dense)
        save_reference(folder / REFERENCE_NPZ, forward_pass.reference(after, before, rows))
        write_error(folder, weights, dense)
        candidates[f"seed {seed}"] = Candidate(recipe("gptq"), folder)
    results = judged(candidates)
    for seed, result in results.items():
        print(seed, result.describe())
    assert len({result.quantization_mean for result in results.values()}) == SEEDS
    refused = {seed: result for seed, result in results.items() if not result.passed}
    assert not refused
    limit = recipe("gptq").gate.engine
    assert max(result.engine_mean for result in results.values()) < limit / 1.5
