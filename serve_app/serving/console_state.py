"""What the console shows: `/status` with what each variant is, its times, and its place."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from serve_app.console.devices import Placed, devices_of
from serve_app.domain.checkpoint import VariantCard
from serve_app.serving.model_list import card_facts

Json = dict[str, Any]
GPU_TYPE, GPU_FRACTION, GPU_COUNT = "gpu_type", "gpu_fraction", "gpu_count"
"""Facts of a variant's card: what its replica sets aside."""
KV_BYTES = "kv_cache_bytes"


def host_memory_bytes() -> int | None:
    """Of the router's own node; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def console_state(
    status: Mapping[str, Any],
    cards: Mapping[str, VariantCard],
    latency: Callable[[str], Json | None],
    *,
    reports: Json,
    host_bytes: int | None,
    epoch_s: float,
) -> Json:
    """The console's snapshot as JSON; null is not known.

    `status` is the router's answer to `GET /status`, `latency` a variant's recent times.
    """
    breakers = status["router"]["breakers"]
    variants = {
        name: _variant(each, cards.get(name), breakers.get(name)) | {"latency": latency(name)}
        for name, each in status["variants"].items()
    }
    placed = [_placed(name, each, cards.get(name)) for name, each in variants.items()]
    devices = devices_of([each for each in placed if each is not None], host_bytes)
    on_a_device = {part.variant for device in devices for part in device.parts}
    return {
        "at_epoch_s": epoch_s,
        "model": status["model"],
        "router": status["router"],
        "aliases": status["aliases"],
        "variants": variants,
        "devices": [asdict(each) | {"free_share": each.free_share} for each in devices],
        "not_placed": [name for name in variants if name not in on_a_device],
        "reports": reports,
    }


def _variant(status: Json, card: VariantCard | None, breaker: Json | None) -> Json:
    return {
        **{name: status[name] for name in ("ready", "asleep", "replicas", "share_bp")},
        "health": _health(status, breaker),
        "breaker": breaker,
        "context_length": card and card.context_length,
        **card_facts(card),
    }


def _health(status: Json, breaker: Json | None) -> str:
    if status["asleep"]:
        return "asleep"
    if not status["ready"]:
        return "down"
    return "breaker open" if breaker is not None and breaker["state"] == "open" else "ready"


def _placed(name: str, variant: Json, card: VariantCard | None) -> Placed | None:
    """None where nothing is known of it yet. Without Serve's word a ready variant has a replica."""
    if card is None:
        return None
    replicas = variant["replicas"]
    n = replicas["running"] if replicas else int(variant["ready"])
    facts = card.facts
    fraction = facts.get(GPU_FRACTION)
    return Placed(
        variant=name,
        replicas=n,
        gpu_type=facts.get(GPU_TYPE),
        fraction=None if fraction is None else float(fraction),
        n_gpus=int(facts.get(GPU_COUNT, 1)),
        weight_bytes=card.weight_bytes,
        kv_bytes=int(facts[KV_BYTES]) if facts.get(KV_BYTES, "").isdecimal() else None,
    )
