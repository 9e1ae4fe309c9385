"""How long `quantile plan` takes on a large fleet: `python -m serve_app.fleet.bench`.

The whole command in a process of its own, imports included: 1,000 variants of Llama-3.1-8B on
4,000 GPUs, by default of four types among which the plan chooses.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from statistics import mean, pstdev
from time import perf_counter
from typing import Any

import msgspec
import yaml

from serve_app.config.serve_content import serve_content, variant_application
from serve_app.domain.units import BP_TOTAL

VARIANTS, ROUNDS, BUDGET_S = 1000, 5, 5.0
CASES = {
    "4,000 GPUs of one type": ["--gpu", "H100=4000"],
    "4,000 GPUs of four types": [
        word for gpu in ("L4", "A10G", "L40S", "H100") for word in ("--gpu", f"{gpu}=1000")
    ],
}
METHODS = ("unquantized", "fp8", "int8_w8a8", "gptq", "awq")
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}


def fleet_file(random: Random) -> dict[str, Any]:
    """A Serve config of many variants, each with its own sizes."""
    names = [f"v{i}" for i in range(VARIANTS)]
    split = dict.fromkeys(names, BP_TOTAL // VARIANTS)
    return serve_content(8000, "m", {"split": split}, [_variant(name, random) for name in names])


def _variant(name: str, random: Random) -> dict[str, Any]:
    method = random.choice(METHODS)
    maximum = random.randint(1, 8)
    args = {
        "model": "m",
        "name": name,
        "checkpoint": f"s3://models/{method}",
        "method": method,
        "gpu": {"type": "H100", "concurrency": random.choice([1, 2, 3])},
        "engine": {
            "dtype": "float16",
            "max_model_len": random.choice([2048, 4096, 8192]),
            "max_num_seqs": random.choice([16, 32, 64]),
        },
    }
    bounds = {"min_replicas": 1, "max_replicas": maximum}
    return variant_application(args, {"autoscaling_config": bounds})


def main() -> int:
    """Print seconds per case; 1 if one is over the budget."""
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        config, shape = Path(folder, "fleet.yaml"), Path(folder, "config.json")
        config.write_text(yaml.dump(fleet_file(Random(1)), Dumper=yaml.CSafeDumper))
        shape.write_bytes(msgspec.json.encode(SHAPE))
        command = [sys.executable, "-m", "serve_app.cli", "plan", str(config)]
        command += ["--assume", str(shape)]
        for case, options in CASES.items():
            seconds = [_time([*command, *options]) for _ in range(ROUNDS)]
            worst = max(worst, *seconds)
            print(
                f"{VARIANTS:,} variants, {case}: {mean(seconds):.2f} s "
                f"(sd {pstdev(seconds):.2f}, most {max(seconds):.2f}, {ROUNDS} rounds)"
            )
    print(f"budget {BUDGET_S:g} s: {'kept' if worst <= BUDGET_S else 'exceeded'}")
    return int(worst > BUDGET_S)


def _time(command: list[str]) -> float:
    started = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
