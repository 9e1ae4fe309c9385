"""What the target serves, by its `GET /v1/models`: which variants, and how long a context."""

import msgspec

from loadtests.campaign import Campaign
from loadtests.observe.target_api import TargetApi, decoded, why_not
from serve_app.domain.errors import ConfigError, UnknownModelError

PIN_SEPARATOR = "@"


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _ModelList(msgspec.Struct):
    data: list[_Model]


def pin(campaign: Campaign, variant: str) -> str:
    """The model name that asks for exactly this variant."""
    return f"{campaign.target.model}{PIN_SEPARATOR}{variant}"


def resolve_variants(campaign: Campaign) -> Campaign:
    """The campaign with its variants by name, each of them served by the endpoint now.

    Raises ConfigError if the endpoint does not answer, UnknownModelError if it serves no
    variant of the model, or not one that the campaign names.
    """
    served = served_variants(campaign)
    wanted = served if campaign.target.variants == "all" else campaign.variant_names()
    missing = [name for name in wanted if name not in served]
    if missing or not wanted:
        model, base_url = campaign.target.model, campaign.target.base_url
        raise UnknownModelError(
            f"{base_url} does not serve {model}@{{{','.join(missing) or '*'}}}; "
            f"its variants of {model!r}: {', '.join(served) or 'none'}"
        )
    return campaign.with_target(variants=list(wanted))


def served_variants(campaign: Campaign) -> tuple[str, ...]:
    """Variants that `GET /v1/models` lists as `<model>@<variant>`. Raises ConfigError."""
    prefix = pin(campaign, "")
    names = [
        each.id.removeprefix(prefix) for each in _models(campaign) if each.id.startswith(prefix)
    ]
    return tuple(dict.fromkeys(names))


def context_lengths(campaign: Campaign) -> dict[str, int | None]:
    """Most tokens of prompt and answer together, by variant of the campaign.

    None where the target does not say. Raises ConfigError if it does not answer.
    """
    known = {each.id: each.max_model_len for each in _models(campaign)}
    return {name: known.get(pin(campaign, name)) for name in campaign.variant_names()}


def _models(campaign: Campaign) -> list[_Model]:
    with TargetApi(campaign.target) as api:
        exchange = api.get("/v1/models")
    where = f"{campaign.target.base_url}/v1/models"
    if exchange.error is not None or exchange.status != 200:
        raise ConfigError(f"{where}: {why_not(exchange)}. Is the server up? Set target.base_url")
    listed = decoded(exchange, _ModelList)
    if listed is None:
        raise ConfigError(f"{where}: not a model list: {exchange.body[:200]!r}")
    return listed.data
