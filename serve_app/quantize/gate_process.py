"""The gate's own process: loads checkpoints in an engine and writes what it computes.

Started by `gate.run_gate`, with three arguments for each candidate:
`python -m serve_app.quantize.gate_process <out> vllm:float16 <folder> <reference.npz> ...`.
Writes `<out>/<i>.npz` for the i-th: `logprobs` and `best`, row after row.
"""

import gc
import json
import os
import sys
from pathlib import Path

import numpy as np

from serve_app.domain.units import MIB
from serve_app.node.host import threads_for
from serve_app.reference.logprobs import Values, load_reference

ENGINE_ENV = {
    # One thread: a model this small spends its time in Python, and two threads wait for each other.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Where AMX is there, bf16 W4A16 would run as W4A8.
    "VLLM_CPU_INT4_W4A8": "0",
    # The engine in this very process: seconds, where processes of its own take half a minute.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
KV_CACHE_BYTES = 64 * MIB
"""At least; and twice what the longest text needs."""


def vllm_logprobs(folder: Path, dtype: str, rows: list[list[int]]) -> tuple[Values, Values]:
    """For each token after the first of each row: its logprob, and the most likely token there."""
    from vllm import LLM, SamplingParams

    longest = max(map(len, rows)) + 1
    llm = LLM(
        model=str(folder),
        dtype=dtype,
        max_model_len=longest,
        max_num_seqs=16,
        kv_cache_memory_bytes=max(KV_CACHE_BYTES, 2 * longest * kv_bytes_per_token(folder)),
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": row} for row in rows], sampling, use_tqdm=False)
    logprobs: list[float] = []
    best: list[int] = []
    for row, output in zip(rows, outputs, strict=True):
        for token, step in zip(row[1:], output.prompt_logprobs[1:], strict=True):
            logprobs.append(step[token].logprob)
            best.append(next(other for other, entry in step.items() if entry.rank == 1))
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    return np.array(logprobs), np.array(best)


def kv_bytes_per_token(folder: Path) -> int:
    """Of a 16-bit cache, by config.json's shape; never below what a quantized one takes."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    n_bytes: int = 2 * 2 * config["num_hidden_layers"] * kv_heads * head_dim
    return n_bytes


def main() -> None:
    """Answer for each candidate of the command line."""
    out, *words = sys.argv[1:]
    folders = [Path(folder) for folder in words[1::3]]
    os.environ.update(ENGINE_ENV | {"OMP_NUM_THREADS": threads_for(folders)})
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override kv_cache_memory_bytes
    for i, (engine, folder, reference) in enumerate(zip(*[iter(words)] * 3, strict=True)):
        kind, dtype = engine.split(":")
        rows = [list(row) for row in load_reference(Path(reference)).tokens]
        if kind == "llamacpp":
            from serve_app.engines.llamacpp_logprobs import engine_logprobs

            logprobs, best = engine_logprobs(Path(folder), rows)
        else:
            logprobs, best = vllm_logprobs(Path(folder), dtype, rows)
        unfinished = Path(out) / f"unfinished-{i}.npz"
        np.savez(unfinished, logprobs=logprobs, best=best)
        unfinished.rename(Path(out) / f"{i}.npz")


if __name__ == "__main__":
    main()
