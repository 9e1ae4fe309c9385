"""The router's `GET /status`: each variant's replicas, and the facts of its engine."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from serve_app.domain.traffic import AliasRules
from serve_app.serving.directory import VariantDirectory
from serve_app.serving.serve_status import replicas_of

STATUS_AGE_S = 1.0
"""How old an answer of Serve's controller may be: many may watch at once."""


def status_of(
    aliases: Mapping[str, AliasRules],
    directory: VariantDirectory,
    applications: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The status as JSON, the router's own model first; null is not known.

    `applications` are what Serve knows, by name. `share_bp` of a variant is its share of the
    router's own model.
    """
    model, *_ = aliases
    names = dict.fromkeys(name for rules in aliases.values() for name in rules.split.variants)
    return {
        "model": model,
        "variants": {
            name: _variant(name, directory, (applications or {}).get(name))
            | {"share_bp": aliases[model].split.shares_bp.get(name, 0)}
            for name in names
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
