"""A change of the split that the console asks for: what it must say, and how it is carried out."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from serve_app.config.strict import ModelName, StrictModel, VariantName
from serve_app.domain.errors import CallerError, MalformedRequestError, UnknownModelError
from serve_app.domain.text import shown
from serve_app.domain.traffic import AliasRules, TrafficSplit
from serve_app.serving.serve_status import dashboard_url
from serve_app.splits.http import ray_token
from serve_app.splits.live_split import (
    SplitChangedError,
    SplitStore,
    SplitUnreachableError,
    told,
)
from serve_app.splits.serve_api import ServeApi

SERVE_API_VARIABLE, APPLICATION_VARIABLE = "QUANTILE_SERVE_API_URL", "QUANTILE_ROUTER_APPLICATION"
_SERVE_API, _APPLICATION = "http://127.0.0.1:8265", "router"
WITHIN_S = 15.0

logger = logging.getLogger("ray.serve")


class SplitBusyError(CallerError):
    """Another change of the split is on its way."""

    http_status = 409
    code = "split_busy"


class SplitChange(StrictModel):
    """The body of `POST /console/split`: shares in basis points."""

    model: ModelName
    expected: dict[VariantName, int]
    """The split as the caller saw it: what another has changed meanwhile is not overwritten."""
    split: dict[VariantName, int]


StoreOf = Callable[[str], SplitStore]
"""A way to the split of a model, to be closed; may block, and is called in a thread."""


def serve_api_of(environ: Mapping[str, str] = os.environ) -> StoreOf:
    """Serve's REST API where the environment says it is, else on this cluster's dashboard."""
    application = environ.get(APPLICATION_VARIABLE, _APPLICATION)

    def store(model: str) -> SplitStore:
        url = environ.get(SERVE_API_VARIABLE) or dashboard_url() or _SERVE_API
        return ServeApi(url, application, model, ray_token(environ))

    return store


def parse_change(body: bytes, aliases: Mapping[str, AliasRules]) -> SplitChange:
    """What is asked for, checked against what is served.

    Raises MalformedRequestError, UnknownModelError, ConfigError.
    """
    try:
        change = SplitChange.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise MalformedRequestError(
            f"{shown(where)}: {first['msg']}; need model, expected and split"
        ) from None
    rules = aliases.get(change.model)
    if rules is None:
        raise UnknownModelError(
            f"there is no model {shown(change.model)} here; served: {', '.join(aliases)}"
        )
    TrafficSplit(change.split)
    for shares in (change.expected, change.split):
        if shares.keys() != rules.split.shares_bp.keys():
            raise MalformedRequestError(
                f"a split of {change.model} names {', '.join(rules.split.variants)}, no more and "
                f"no less; have {', '.join(shares) or 'none'}"
            )
    return change


class SplitChanger:
    """Carries out one change at a time."""

    def __init__(self, store_of: StoreOf, within_s: float = WITHIN_S) -> None:
        self._store_of = store_of
        self._within_s = within_s
        self._is_busy = False

    async def change(self, asked: SplitChange, who: str) -> dict[str, Any]:
        """Make it so, and say what it is now; every router replica has it a moment later.

        Raises SplitBusyError, SplitChangedError, SplitUnreachableError, ConfigError.
        """
        if self._is_busy:
            raise SplitBusyError("another change of the split is on its way; look again, then try")
        self._is_busy = True
        try:
            async with asyncio.timeout(self._within_s):
                store = await asyncio.to_thread(self._store_of, asked.model)
                try:
                    await store.change(asked.expected, asked.split)
                finally:
                    await store.close()
        except TimeoutError:
            raise SplitUnreachableError(
                f"Serve's REST API did not answer within {self._within_s:g} s: the split may or "
                "may not have changed. See what is served, then try again; "
                f"{SERVE_API_VARIABLE} says where the API is"
            ) from None
        except SplitChangedError as error:
            raise SplitChangedError(f"the split is not what this page showed: {error}") from None
        finally:
            self._is_busy = False
        logger.warning(
            "console: %s changed the split of %s from %s to %s",
            who, asked.model, told(asked.expected), told(asked.split),
        )  # fmt: skip
        return {"model": asked.model, "split": asked.split}
