"""The split that is served: where it stands in a Serve config, and who may change it."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from serve_app.domain.errors import CallerError, ConfigError, ServerError
from serve_app.domain.units import BP_TOTAL

ROUTER_DEPLOYMENT = "VariantRouter"
Shares = dict[str, int]
"""Basis points by variant."""


class SplitChangedError(CallerError):
    """Somebody else changed the split that a rollout is changing."""

    http_status = 409
    code = "split_changed"


class SplitUnreachableError(ServerError):
    """The split could not be read or changed. What was decided is kept, and can be carried out."""

    code = "split_unreachable"
    exit_code = 4


class SplitStore(Protocol):
    """Where the split is. Methods raise SplitUnreachableError, and ConfigError where the router or
    its split is not there, or cannot be changed by us."""

    async def read(self) -> Shares:
        """The shares that are asked for now."""

    async def change(self, expected: Mapping[str, int], wanted: Mapping[str, int]) -> None:
        """Make `expected` into `wanted`, and nothing else into anything.

        Raises SplitChangedError, with nothing changed, where the split is not `expected`.
        """

    async def close(self) -> None:
        """End connections."""


def path_of_split(
    applications: Sequence[Mapping[str, Any]], application: str, model: str
) -> tuple[int, int, tuple[str, ...]]:
    """Where the split of `model` stands: application, deployment, keys in its `user_config`.

    Raises ConfigError where it is not there, or where the ladder moves the same shares.
    """
    names = [item.get("name") for item in applications]
    if application not in names:
        known = ", ".join(map(str, names)) or "none"
        raise ConfigError(f"no application {application!r} is deployed; there is: {known}")
    index = names.index(application)
    router = applications[index]
    for place, deployment in enumerate(router.get("deployments") or []):
        user_config = deployment.get("user_config")
        if deployment.get("name") == ROUTER_DEPLOYMENT and user_config:
            keys = _keys(user_config, (router.get("args") or {}).get("model"), model)
            rules = user_config if len(keys) == 1 else user_config["aliases"][model]
            if rules.get("ladder"):
                raise ConfigError(
                    f"the precision ladder of {model!r} moves the shares that a rollout moves: "
                    "deploy without `ladder` first"
                )
            return index, place, keys
    raise ConfigError(
        f"application {application!r} has no deployment {ROUTER_DEPLOYMENT} with a user_config: "
        "is it serve_app.app:router?"
    )


def split_at(
    applications: Sequence[Mapping[str, Any]], at: tuple[int, int, tuple[str, ...]]
) -> Shares:
    """The split that stands there."""
    index, place, keys = at
    value = applications[index]["deployments"][place]["user_config"]
    for key in keys:
        value = value[key]
    return dict(value)


def with_split(
    applications: Sequence[Mapping[str, Any]],
    at: tuple[int, int, tuple[str, ...]],
    wanted: Mapping[str, int],
) -> list[dict[str, Any]]:
    """A copy in which that split is `wanted`; all else is as it was."""
    changed = copy.deepcopy([dict(item) for item in applications])
    index, place, keys = at
    value = changed[index]["deployments"][place]["user_config"]
    for key in keys[:-1]:
        value = value[key]
    value[keys[-1]] = dict(wanted)
    return changed


def same_shares(a: Mapping[str, int], b: Mapping[str, int]) -> bool:
    """Whether two splits route alike."""
    return {k: v for k, v in a.items() if v} == {k: v for k, v in b.items() if v}


def require_expected(found: Mapping[str, int], expected: Mapping[str, int]) -> None:
    """Raises SplitChangedError where the split is not as we left it."""
    if not same_shares(found, expected):
        raise SplitChangedError(
            f"the split is {told(found)}, and was {told(expected)} when the rollout last saw it: "
            "somebody else changed it. Put it back and run again, or end the rollout with --abort "
            "--keep-split"
        )


def shares_at(original: Mapping[str, int], baseline: str, candidate: str, step_bp: int) -> Shares:
    """The split in which the candidate has `step_bp` of what the two had together.

    Raises ConfigError where there is nothing to share out.
    """
    for name in (baseline, candidate):
        if name not in original:
            raise ConfigError(
                f"the split has no {name}; it has {told(original)}: serve it with a share of "
                "0 first"
            )
    pool = original[baseline] + original[candidate]
    if not pool:
        raise ConfigError(f"{baseline} and {candidate} have no traffic: {told(original)}")
    ours = min(pool, max(1, round(pool * step_bp / BP_TOTAL))) if step_bp else 0
    return {**original, baseline: pool - ours, candidate: ours}


def told(shares: Mapping[str, int]) -> str:
    """The shares, for people."""
    return ", ".join(f"{name} {share}" for name, share in shares.items())


def _keys(user_config: Mapping[str, Any], own: Any, model: str) -> tuple[str, ...]:
    if model == own and "split" in user_config:
        return ("split",)
    aliases = user_config.get("aliases") or {}
    if "split" in (aliases.get(model) or {}):
        return ("aliases", model, "split")
    known = ", ".join([str(own), *aliases])
    raise ConfigError(f"the router has no split for model {model!r}; it serves {known}")
