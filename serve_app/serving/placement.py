"""What Ray is told to set aside for a replica, and what it did set aside."""

from typing import Any

from serve_app.config.gpus import find_gpu, load_gpus
from serve_app.config.schema import VariantArgs

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""The node label by which Ray tells GPU types apart."""


def actor_options(args: VariantArgs) -> dict[str, Any]:
    """Ray's options for one replica: its share of a GPU, or its whole GPUs, of the planned type.

    Without `gpu` nothing is set aside. Raises ConfigError for a GPU type that is not in the
    catalogue. A fraction that is still open is refused elsewhere (`require_share`).
    """
    if args.gpu is None:
        return {"num_cpus": 0}
    ranks = args.engine.tensor_parallel_size
    profile = find_gpu(load_gpus(), args.gpu.type)
    return {
        "num_cpus": 0,
        "num_gpus": ranks if ranks > 1 else (args.gpu.fraction or 1.0),
        "label_selector": {ACCELERATOR_LABEL: profile.accelerator_type},
    }


def assigned_fraction() -> float:
    """Share of each of its GPUs that Ray has set aside for this replica; 0.0 without one."""
    import ray

    context = ray.get_runtime_context()
    n_gpus = len(context.get_accelerator_ids().get("GPU", []))
    assigned = float(context.get_assigned_resources().get("GPU", 0.0))
    return assigned / n_gpus if n_gpus else 0.0
