"""The gate's own process: loads variants in vLLM and appends one JSON line per judged variant.

Started by `gate.run_gate`: `python -m serve_app.reference.gate_process results.jsonl gptq=/path`.
"""

import gc
import json
import os
import sys
from pathlib import Path

import numpy as np

from serve_app.domain.units import MIB
from serve_app.quantize.recipes import Recipe, recipe
from serve_app.reference.gate import judge, result_to_json
from serve_app.reference.logprobs import REFERENCE_NPZ, Rows, load_reference

ENGINE_ENV = {
    # One thread: a model this small spends its time in Python, and two threads wait for each other.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Where AMX is there, bf16 W4A16 would run as W4A8.
    "VLLM_CPU_INT4_W4A8": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
KV_CACHE_BYTES = 64 * MIB


def engine_logprobs(folder: Path, chosen: Recipe, rows: list[list[int]]) -> tuple[Rows, Rows]:
    """Per row: logprob of each token after the first, and the most likely token there."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder),
        dtype=chosen.engine_dtype,
        max_model_len=512,
        max_num_seqs=16,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": row} for row in rows], sampling, use_tqdm=False)
    logprobs, best = [], []
    for row, output in zip(rows, outputs, strict=True):
        steps = output.prompt_logprobs[1:]
        logprobs.append(
            np.array([step[token].logprob for step, token in zip(steps, row[1:], strict=True)])
        )
        best.append(
            np.array([next(t for t, entry in step.items() if entry.rank == 1) for step in steps])
        )
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    return logprobs, best


def main() -> None:
    """Judge each `variant=folder` of the command line."""
    results_path, *pairs = sys.argv[1:]
    os.environ.update(ENGINE_ENV)
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override kv_cache_memory_bytes
    for pair in pairs:
        name, _, folder = pair.partition("=")
        chosen = recipe(name)
        reference = load_reference(Path(folder) / REFERENCE_NPZ)
        rows = [list(row) for row in reference.tokens]
        result = judge(chosen.tolerance, reference, *engine_logprobs(Path(folder), chosen, rows))
        with open(results_path, "a", encoding="utf-8") as results:
            results.write(json.dumps({"name": name, **result_to_json(result)}) + "\n")


if __name__ == "__main__":
    main()
