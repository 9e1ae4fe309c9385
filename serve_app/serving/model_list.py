"""`/v1/models`: every name that a request may give, with what is known of the variant behind it."""

from collections.abc import Mapping
from typing import Any

from serve_app.domain.checkpoint import VariantCard
from serve_app.domain.traffic import AliasRules
from serve_app.routing.pin import parse_model, served_names
from serve_app.serving.directory import VariantDirectory


def model_list(aliases: Mapping[str, AliasRules], directory: VariantDirectory) -> dict[str, Any]:
    """All models in OpenAI's shape."""
    data = [model_entry(name, aliases, directory) for name in served_names(aliases)]
    return {"object": "list", "data": data}


def model_entry(
    name: str, aliases: Mapping[str, AliasRules], directory: VariantDirectory
) -> dict[str, Any]:
    """One model; facts of a variant are None until it has been ready. Raises UnknownModelError."""
    alias, variant = parse_model(name, aliases)
    shares_bp = aliases[alias].split.shares_bp
    entry = {"id": name, "object": "model", "created": 0, "owned_by": "quantile"}
    if variant is None:
        cards = [directory.cards[each] for each in shares_bp if each in directory.cards]
        shortest = min((card.context_length for card in cards), default=None)
        return entry | {"max_model_len": shortest, "shares_bp": dict(shares_bp)}
    card = directory.cards.get(variant)
    return entry | {
        "root": alias,
        "variant": variant,
        "share_bp": shares_bp[variant],
        "ready": directory.is_ready(variant),
        "asleep": directory.is_asleep(variant),
        "max_model_len": card and card.context_length,
        **card_facts(card),
    }


def card_facts(card: VariantCard | None) -> dict[str, Any]:
    """What a variant is; None until it has been ready."""
    names = ("method", "scheme", "bits", "weight_bytes", "engine")
    return {name: card and getattr(card, name) for name in names}
