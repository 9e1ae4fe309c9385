"""A process of its own that boots one engine alone, gives it a full batch and says what it holds.

`python -m serve_app.engines.vllm_calibrate <out.json>` with the task as one line of JSON on its
standard input: `{"folder": ..., "settings": {...}}`. Writes the engine's sizes and one report per
rank, and keeps the engine until its standard input ends: whoever asked looks at the device then.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve_app.config.schema import EngineSettings
from serve_app.engines.engine import EngineSpec
from serve_app.engines.vllm_engine import prepare_environment
from serve_app.planning.footprint import EngineSizes

BATCH_PROMPT_TOKENS = 256


def measure(
    folder: Path, settings: EngineSettings, answer: Callable[[dict[str, Any]], None]
) -> None:
    """Give sizes, version and memory reports of an engine with these settings to `answer`, and end
    the engine when that returns."""
    prepare_environment(settings.threads)
    from vllm import LLM, SamplingParams, __version__
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    from serve_app.engines.vllm_args import server_arguments

    args = server_arguments(EngineSpec(("calibration",), folder, settings))
    args.worker_extension_cls = "serve_app.engines.vllm_memory.MemoryReport"
    if current_platform.is_cpu():
        args.distributed_executor_backend = "uni"
    llm = LLM.from_engine_args(EngineArgs.from_cli_args(args))
    sizes = engine_sizes_of(llm.llm_engine.vllm_config)
    length = min(BATCH_PROMPT_TOKENS, sizes.max_model_len - 2)
    prompts = [{"prompt_token_ids": [1 + i % 7] * length} for i in range(sizes.max_num_seqs)]
    sampling = SamplingParams(max_tokens=2, ignore_eos=True, detokenize=False)
    llm.generate(prompts, sampling, use_tqdm=False)
    ranks = llm.collective_rpc("quantile_memory")
    answer({"vllm": __version__, "sizes": dataclasses.asdict(sizes), "ranks": ranks})
    llm.llm_engine.engine_core.shutdown()


def engine_sizes_of(config: Any) -> EngineSizes:
    """The sizes that an engine really has, from vLLM's own configuration."""
    model, compilation = config.model_config, config.compilation_config
    eager = model.enforce_eager or not compilation.max_cudagraph_capture_size
    return EngineSizes(
        max_model_len=model.max_model_len,
        max_num_seqs=config.scheduler_config.max_num_seqs,
        max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
        max_cudagraph_capture_size=0 if eager else compilation.max_cudagraph_capture_size,
        kv_dtype_bytes=(
            1 if str(config.cache_config.cache_dtype).startswith("fp8") else model.dtype.itemsize
        ),
        activation_dtype_bytes=model.dtype.itemsize,
        block_size=config.cache_config.block_size,
        tensor_parallel_size=config.parallel_config.tensor_parallel_size,
    )


def main() -> None:
    """Measure what standard input names; the answer appears whole or not at all."""
    task, out = json.loads(sys.stdin.readline()), Path(sys.argv[1])

    def answer(found: dict[str, Any]) -> None:
        unfinished = out.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(found))
        unfinished.rename(out)
        sys.stdin.read()

    measure(Path(task["folder"]), EngineSettings.model_validate(task["settings"]), answer)


if __name__ == "__main__":
    main()
