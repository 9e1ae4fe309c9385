"""A process of its own: SqueezeLLM checkpoints and their twins in real vLLM CPU engines.

`python -m tests.engine_cpu.squeezellm_probe <out> <rows.json> <folder>[+once] ...` writes for each
`<out>/<i>.npz` (`logprobs` of the rows' tokens) and `<out>/<i>.json` (`held`: bytes as
`weight_probe` counts them, `kernels`: by kind of layer).
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.engines.vllm_facts import kernels
from serve_app.quantize.gate_process import ENGINE_ENV, KV_CACHE_BYTES
from tests.engine_cpu.weight_probe import held_bytes


def found_kernels(model: Any) -> dict[str, str]:
    """As vLLM's `apply_model` calls it."""
    return kernels(model.named_modules())


def main() -> None:
    """Load each folder of the command line, one after the other."""
    os.environ.update(ENGINE_ENV)
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    from vllm import LLM, SamplingParams

    out, rows_file, *asked = sys.argv[1:]
    rows = json.loads(Path(rows_file).read_text())
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
    for i, each in enumerate(asked):
        folder, _, once = each.partition("+")
        llm = LLM(
            model=folder,
            dtype="float16",
            max_model_len=512,
            max_num_seqs=16,
            kv_cache_memory_bytes=KV_CACHE_BYTES,
            enforce_eager=True,
            enable_prefix_caching=False,
            disable_log_stats=True,
            skip_tokenizer_init=True,
            additional_config={"squeezellm": {"dequantize_once": bool(once)}},
        )
        outputs = llm.generate([{"prompt_token_ids": row} for row in rows], sampling)
        logprobs = [
            step[token].logprob
            for row, output in zip(rows, outputs, strict=True)
            for token, step in zip(row[1:], output.prompt_logprobs[1:], strict=True)
        ]
        told = {
            "held": llm.apply_model(held_bytes)[0],
            "kernels": llm.apply_model(found_kernels)[0],
        }
        np.savez(Path(out) / f"{i}.npz", logprobs=np.array(logprobs))
        (Path(out) / f"{i}.json").write_text(json.dumps(told))
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


if __name__ == "__main__":
    main()
