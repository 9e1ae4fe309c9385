"""An engine in a process of its own, which measures itself when told to: see `speed_run`.

`python -m serve_app.reference.speed_process <answers> '<EngineOrder as JSON>'`

Says over the pipe `<answers>` (a file descriptor), one JSON line each, first what it is, then for
every line `{"batch": 8, "tokens": 64}` of standard input how long that many sequences took. Its
standard output is the engine's log.
"""

import importlib
import json
import os
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serve_app.domain.errors import EngineError
from serve_app.domain.units import MIB

PROMPT_TOKENS = 16
MAX_MODEL_LEN = 256
KV_CACHE_BYTES = 128 * MIB
"""32 sequences of the large shape: 16 KiB per token, in blocks of 128 tokens, take 64 MiB."""
FIRST_TOKEN, LAST_TOKEN = 10, 1000
"""Ordinary tokens of the reference tokenizer, none of its special ones."""

Generate = Callable[[list[list[int]], int], int]
"""Continue every prompt by exactly so many tokens, greedily; returns how many came in all."""


def prompts(batch: int, seed: int) -> list[list[int]]:
    """`batch` different prompts of `PROMPT_TOKENS` token ids."""
    rng = random.Random(seed)
    return [
        [rng.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(PROMPT_TOKENS)] for _ in range(batch)
    ]


def vllm_engine(folder: Path, dtype: str, max_batch: int) -> tuple[Generate, dict[str, str]]:
    """vLLM in this very process: one process to hear and to end, and no second copy of torch."""
    import torch
    import vllm
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder),
        dtype=dtype,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=max_batch,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
        worker_extension_cls="serve_app.engines.vllm_facts.FactsReport",
    )

    def generate(rows: list[list[int]], tokens: int) -> int:
        sampling = SamplingParams(
            max_tokens=tokens, temperature=0.0, ignore_eos=True, detokenize=False
        )
        outputs = llm.generate(
            [{"prompt_token_ids": row} for row in rows], sampling, use_tqdm=False
        )
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    facts: dict[str, str] = llm.collective_rpc("quantile_facts")[0]
    return generate, facts | {"engine": f"vllm {vllm.__version__}", "torch": torch.__version__}


def llamacpp_engine(folder: Path, max_batch: int, threads: int) -> tuple[Generate, dict[str, str]]:
    """llama.cpp's own server loop, asked without sockets; it batches what is asked together."""
    xllamacpp = importlib.import_module("xllamacpp")
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise EngineError(f"{folder} has {len(files)} *.gguf files: need exactly one")
    params = xllamacpp.CommonParams()
    params.model.path = str(files[0])
    params.n_parallel = max_batch
    params.n_ctx = MAX_MODEL_LEN * max_batch
    params.n_batch = params.n_ubatch = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0
    params.fit_params = False
    params.verbosity = 1
    server = xllamacpp.Server(params)
    callers = ThreadPoolExecutor(max_batch)

    def ask(row: list[int], tokens: int) -> int:
        request = {
            "prompt": row, "n_predict": tokens, "temperature": 0.0, "top_k": 1,
            "ignore_eos": True, "cache_prompt": False, "stream": False,
        }  # fmt: skip
        answer: Any = server.handle_completions(request)
        if "usage" not in answer:
            raise EngineError(f"llama.cpp answered {answer!r}: need `usage`")
        return int(answer["usage"]["completion_tokens"])

    def generate(rows: list[list[int]], tokens: int) -> int:
        return sum(callers.map(ask, rows, [tokens] * len(rows)))

    return generate, {
        "engine": f"llama.cpp (xllamacpp {xllamacpp.__version__})",
        "instructions": xllamacpp.get_system_info(),
    }


def measure(generate: Generate, batch: int, tokens: int, seed: int) -> dict[str, float]:
    """Wall and CPU seconds of one batch, prompts included. Raises `EngineError` on short answers.

    CPU seconds are the whole process's: with one thread, wall time beyond them went to others.
    """
    rows = prompts(batch, seed)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    came = generate(rows, tokens)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    if came != batch * tokens:
        raise EngineError(f"asked for {batch} x {tokens} tokens, {came} came: not comparable")
    return {"tokens": came, "wall_s": wall_s, "cpu_s": cpu_s}


def main() -> None:
    """Load the engine, say so, and measure until standard input ends."""
    descriptor, order = int(sys.argv[1]), json.loads(sys.argv[2])
    folder, max_batch = Path(order["folder"]), int(order["max_batch"])
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override kv_cache_memory_bytes
    with os.fdopen(descriptor, "w", buffering=1) as answers:
        if order["kind"] == "llamacpp":
            generate, facts = llamacpp_engine(folder, max_batch, int(order["threads"]))
        else:
            generate, facts = vllm_engine(folder, order["dtype"], max_batch)
        for batch in (1, max_batch):
            measure(generate, batch, tokens=4, seed=0)
        answers.write(json.dumps({"facts": facts}) + "\n")
        for line in sys.stdin:
            asked = json.loads(line)
            answers.write(json.dumps(measure(generate, **asked)) + "\n")


if __name__ == "__main__":
    main()
