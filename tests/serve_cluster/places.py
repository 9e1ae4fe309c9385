"""Where Ray really put the replicas."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """One replica: its variant, its node, its GPUs on that node, and what it took of each."""

    variant: str
    node_id: str
    gpu_ids: tuple[str, ...]
    fraction: float
    gpu_type: str


def places(ray: Any) -> list[Place]:
    """Places of all replicas that are alive, asked of the replicas themselves."""
    labels = {node["NodeID"]: node["Labels"] for node in ray.nodes()}
    found = []
    for named in ray.util.list_named_actors(all_namespaces=True):
        name = named["name"]
        if not name.startswith("SERVE_REPLICA::") or "VariantServer" not in name:
            continue
        actor = ray.get_actor(name, namespace=named["namespace"])
        try:
            where = ray.get(actor.__ray_call__.remote(_ask), timeout=3)
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
            continue  # it waits for a place, or is on its way out
        node_id, gpu_ids, resources = where
        found.append(
            Place(
                variant=name.removeprefix("SERVE_REPLICA::").partition("#")[0],
                node_id=node_id,
                gpu_ids=tuple(gpu_ids),
                fraction=resources.get("GPU", 0.0),
                gpu_type=labels[node_id].get("ray.io/accelerator-type", ""),
            )
        )
    return found


def _ask(_replica: Any) -> tuple[str, list[str], dict[str, float]]:
    import ray

    context = ray.get_runtime_context()
    ids = context.get_accelerator_ids()["GPU"]
    return context.get_node_id(), ids, context.get_assigned_resources()


def load_per_gpu(found: list[Place]) -> dict[tuple[str, str], float]:
    """What is taken of each GPU, by node and id."""
    taken: dict[tuple[str, str], float] = defaultdict(float)
    for place in found:
        for gpu_id in place.gpu_ids:
            taken[place.node_id, gpu_id] += place.fraction / max(1, len(place.gpu_ids))
    return dict(taken)
