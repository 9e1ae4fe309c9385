"""SqueezeLLM checkpoints in real vLLM: what the engine computes is what the dense twin computes.

Made here of the reference model without sensitivity, which needs no calibration: a few seconds.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serve_app.planning.facts import Source
from serve_app.reference.build import CHECKPOINT
from serve_app.store.facts import checkpoint_facts

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ROWS = [[7 * i % 509 + 3 for i in range(start, start + 48)] for start in range(0, 160, 20)]


def reference_logprobs(folder: Path, container: str) -> np.ndarray:
    """An fp32 forward pass of the checkpoint's dequantized weights."""
    import torch

    from serve_app.quantize.layouts import dequantize
    from serve_app.reference.model import LlamaShape, forward

    weights = dequantize(folder, container)
    logprobs = []
    for row in ROWS:
        with torch.inference_mode():
            scores = forward(weights, LlamaShape(), torch.tensor([row]))[0, :-1].log_softmax(-1)
        logprobs.append(scores.gather(1, torch.tensor(row[1:])[:, None])[:, 0].numpy())
    return np.concatenate(logprobs)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    from serve_app.quantize.layouts import dequantize
    from serve_app.quantize.make_squeezellm import Shares, squeeze
    from serve_app.quantize.twin import write_twin

    made = {}
    for name, bits in (("w4", 4), ("w3", 3)):
        made[name] = tmp_path_factory.mktemp(name)
        squeeze(CHECKPOINT, made[name], bits, Shares(largest=0.004, sensitive=0.0), [])
    record = {"variant": "w3", "method": "squeezellm", "engine": {"dtype": "float16"}}
    (made["w3"] / "quantile.json").write_text(json.dumps(record))
    made["twin"] = tmp_path_factory.mktemp("twin")
    write_twin(made["w3"], made["twin"], dequantize(made["w3"], "squeezellm"))
    return made


@pytest.fixture(scope="module")
def engines(folders, tmp_path_factory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("probe")
    rows = out / "rows.json"
    rows.write_text(json.dumps(ROWS))
    asked = {
        "w4": str(folders["w4"]),
        "w3": str(folders["w3"]),
        "w3 once": f"{folders['w3']}+once",
        "twin": str(folders["twin"]),
    }
    command = [sys.executable, "-m", "tests.engine_cpu.squeezellm_probe", str(out), str(rows)]
    done = subprocess.run([*command, *asked.values()], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for i, name in enumerate(asked):
        with np.load(out / f"{i}.npz") as arrays:
            found[name] = {"logprobs": arrays["logprobs"]}
        found[name] |= json.loads((out / f"{i}.json").read_text())
    return found


def test_the_engine_computes_what_the_weights_say(engines, folders):
    for name in ("w4", "w3"):
        apart = np.abs(engines[name]["logprobs"] - reference_logprobs(folders[name], "squeezellm"))
        print(name, f"|dlogprob| to fp32: mean {apart.mean():.5f}, max {apart.max():.4f}")
        assert apart.mean() < 0.006  # these rows are no text: their logprobs are far below it
    others = np.abs(engines["w4"]["logprobs"] - engines["w3"]["logprobs"])
    assert others.mean() > 0.03  # what a wrong table would look like


def test_the_twin_and_both_ways_of_looking_up_agree(engines):
    twin = engines["twin"]["logprobs"]
    for name in ("w3", "w3 once"):
        apart = np.abs(engines[name]["logprobs"] - twin)
        print(name, f"to its twin: mean {apart.mean():.6f}, max {apart.max():.6f}")
        assert apart.max() < 0.02
        assert apart.mean() < 0.001


def test_the_facts_name_the_kernel(engines):
    assert engines["w3"]["kernels"]["qkv_proj"] == "SqueezeLLMLinearMethod > LookUpEachTime"
    assert "DequantizedOnce" in engines["w3 once"]["kernels"]["down_proj"]


@pytest.mark.parametrize("name", ["w4", "w3"])
def test_headers_tell_what_the_engine_holds(engines, folders, name):
    weights = checkpoint_facts(str(folders[name])).weights
    held = engines[name]["held"]
    resident = held["tensor_bytes"] + held["packed_bytes"]
    print(name, f"headers {weights.total_bytes}, engine {resident}")
    assert weights.source is Source.HEADERS
    assert weights.total_bytes == pytest.approx(resident, rel=0.01)
