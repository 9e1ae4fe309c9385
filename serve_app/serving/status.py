"""The router's `GET /status`: each variant's replicas, and the facts of its engine."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from serve_app.domain.traffic import TrafficSplit
from serve_app.serving.directory import VariantDirectory
from serve_app.serving.serve_status import replicas_of

STATUS_AGE_S = 1.0
"""How old an answer of Serve's controller may be: many may watch at once."""


def status_of(
    model: str,
    split: TrafficSplit,
    directory: VariantDirectory,
    applications: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The status as JSON; `applications` are what Serve knows, by name. Null is not known."""
    return {
        "model": model,
        "variants": {
            name: _variant(name, directory, (applications or {}).get(name))
            | {"share_bp": split.shares_bp[name]}
            for name in split.variants
        },
    }


def _variant(name: str, directory: VariantDirectory, application: Any) -> dict[str, Any]:
    card = directory.cards.get(name)
    replicas = application and replicas_of(application)
    return {
        "ready": directory.is_ready(name),
        "asleep": directory.is_asleep(name),
        "replicas": replicas and asdict(replicas),
        "facts": card and card.facts,
    }
