"""One Serve config file for every variant of the reference model: all asleep until they are asked.

38 engines do not fit into a laptop; one after another they do. A variant's first request wakes it,
and once the next variant is asked it goes back to sleep.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from serve_app.config.serve_content import serve_content, variant_application
from serve_app.config.serve_file import check_serve_file
from serve_app.domain.quant import QuantMethod
from serve_app.domain.units import BP_TOTAL, MIB
from serve_app.quantize.recipes import Recipe
from serve_app.reference.locate import SCHEME, TWIN_SUFFIX, has_twin

MODEL = "quantile-reference"
HEAD = (
    "# Written by `quantile family`: the variants of the reference model. `serve run` takes it.\n"
)
WAKE_S = 180
"""An engine is up in 10 to 60 s on two busy cores."""
SLEEP = {
    "min_replicas": 0,
    "max_replicas": 1,
    "upscale_delay_s": 0,
    "downscale_delay_s": 15,
    "look_back_period_s": 5,
    "metrics_interval_s": 2,
}
VLLM = {
    "max_model_len": 1024,
    "max_num_seqs": 16,
    "kv_cache_memory_bytes": 64 * MIB,
    "enforce_eager": True,
    "threads": 1,
}
LLAMACPP = {"max_model_len": 1024, "max_num_seqs": 16, "threads": 1}


def write_family(path: Path, recipes: Sequence[Recipe], port: int) -> None:
    """Write the file, the baseline first and awake, and check it. Raises `ConfigError`."""
    baseline, *others = (each.name for each in recipes)
    content = serve_content(
        port,
        MODEL,
        {"split": {baseline: BP_TOTAL} | dict.fromkeys(others, 0), "sleepers": others},
        [_application(each, each.name != baseline) for each in recipes],
        {"wake_timeout_s": WAKE_S},
    )
    path.write_text(HEAD + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    check_serve_file(path)


def _application(recipe: Recipe, may_sleep: bool) -> dict[str, Any]:
    twin = has_twin(recipe.name)
    is_vllm = twin or recipe.engine.kind == "vllm"
    engine: dict[str, Any] = (
        {"kind": "vllm", "dtype": recipe.engine.dtype, **VLLM}
        if is_vllm
        else {"kind": recipe.engine.kind, **LLAMACPP}
    )
    method = QuantMethod.UNQUANTIZED if twin else recipe.method
    args = {
        "model": MODEL,
        "name": recipe.name,
        "checkpoint": f"{SCHEME}{recipe.name}{TWIN_SUFFIX if twin else ''}",
        "method": str(method),
        "engine": engine,
    }
    return variant_application(args, {"autoscaling_config": dict(SLEEP)} if may_sleep else None)
