"""Weight bytes from headers against what a real vLLM engine holds, scheme by scheme.

vLLM's CPU worker reports no figure of its own (`model_memory_usage` is CUDA's), so the loaded model
is counted. Against CUDA it differs in three known ways, which the counts keep apart: linear weights
may be packed by oneDNN in place of their parameter, embedding and head beside it, and int8 layers
have an extra correction per channel (`azp_adj`, or at the end of the weight where there is AMX).
"""

import json
import subprocess
import sys

import pytest

from serve_app.planning.facts import Source
from serve_app.reference.locate import resolve
from serve_app.store.facts import checkpoint_facts

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

DTYPES = {"baseline": "bfloat16", "int8": "bfloat16", "gptq": "float16", "awq": "float16"}


@pytest.fixture(scope="module")
def held(family, tmp_path_factory) -> dict[str, dict[str, int]]:
    out = tmp_path_factory.mktemp("probe") / "held.json"
    pairs = [f"{dtype}={resolve(f'reference://{name}')}" for name, dtype in DTYPES.items()]
    command = [sys.executable, "-m", "tests.engine_cpu.weight_probe", str(out), *pairs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(DTYPES, json.loads(out.read_text()), strict=True))


@pytest.mark.parametrize("name", DTYPES)
def test_headers_tell_what_the_engine_holds(held, name):
    folder = resolve(f"reference://{name}")
    weights = checkpoint_facts(str(folder)).weights
    assert weights.source is Source.HEADERS
    counted = held[name]
    resident = counted["tensor_bytes"] + counted["packed_bytes"]
    print(name, f"headers {weights.total_bytes}, engine {resident}", counted)
    assert weights.total_bytes == pytest.approx(resident, rel=0.01)
    # What is left over: four attention scales per layer, and the stored shape of packed weights.
    unexplained = resident - counted["cpu_only_bytes"] - weights.total_bytes
    assert 0 <= unexplained < 512
    # Which of the two depends on the dtype and on the CPU; `host_footprint` counts the larger.
    assert counted["copied_bytes"] in {0, weights.embedding_bytes + weights.head_bytes}
