"""What the `model` of a request names: an alias, whose split decides, or one variant of it."""

from collections.abc import Mapping

from serve_app.domain.errors import UnknownModelError
from serve_app.domain.text import shown
from serve_app.domain.traffic import AliasRules

PIN_SEPARATOR = "@"


def parse_model(model: str, aliases: Mapping[str, AliasRules]) -> tuple[str, str | None]:
    """The alias that `model` names, and the variant that it pins, or None where the split decides.

    Raises UnknownModelError for any other name, listing the names that are served.
    """
    if model in aliases:
        return model, None
    alias, separator, variant = model.rpartition(PIN_SEPARATOR)
    if separator and alias in aliases and variant in aliases[alias].split.shares_bp:
        return alias, variant
    raise UnknownModelError(
        f"model {shown(model)} is not served here; served: {', '.join(served_names(aliases))}"
    )


def served_names(aliases: Mapping[str, AliasRules]) -> list[str]:
    """Every name that a request may give: each alias, then its pins."""
    return [
        name
        for alias, rules in aliases.items()
        for name in (alias, *(f"{alias}{PIN_SEPARATOR}{each}" for each in rules.split.variants))
    ]
