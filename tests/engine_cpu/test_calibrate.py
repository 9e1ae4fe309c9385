"""The measuring process with a real engine: it starts, answers, and leaves nothing behind."""

from pathlib import Path

import psutil
import pytest

from serve_app.calibrate.engine_run import run_engine
from serve_app.config.schema import EngineSettings
from serve_app.domain.errors import EngineError
from serve_app.domain.units import MIB
from serve_app.node.host import HostMemory
from serve_app.reference.build import CHECKPOINT

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

SETTINGS = EngineSettings(
    dtype="bfloat16",
    max_model_len=512,
    max_num_seqs=4,
    max_num_batched_tokens=1024,
    kv_cache_memory_bytes=64 * MIB,
    enforce_eager=True,
    threads=1,
)


def test_an_engine_says_its_sizes_and_what_it_holds():
    run = run_engine(CHECKPOINT, SETTINGS, [HostMemory()])
    assert run.sizes.max_num_batched_tokens == 1024
    assert (run.sizes.max_num_seqs, run.sizes.max_model_len) == (4, 512)
    assert run.sizes.max_cudagraph_capture_size == 0
    assert run.sizes.kv_dtype_bytes == run.sizes.activation_dtype_bytes == 2
    (rank,) = run.ranks
    assert rank["device"] == "cpu"
    assert 0 < rank["kv_cache_bytes"] <= 64 * MIB
    assert run.held_bytes["host"] > rank["kv_cache_bytes"]
    assert not psutil.pid_exists(rank["pid"])


def test_an_engine_that_does_not_start_says_why(tmp_path: Path):
    with pytest.raises(EngineError, match=r"exit code 1 before.*\n.*Error: "):
        run_engine(tmp_path, SETTINGS, [HostMemory()])
