"""The split through the Serve REST API of Ray's dashboard: read all, change one value, put all.

Ray's API takes the whole config (`PUT /api/serve/applications/`) and has no version to hold it
against, so what is there is read right before and read back right after. Two writers within those
milliseconds are not told apart; the rollout looks again while a step lasts.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from serve_app.domain.errors import ConfigError
from serve_app.splits.http import JsonClient, Refused, Sleep
from serve_app.splits.live_split import (
    Shares,
    SplitChangedError,
    SplitUnreachableError,
    path_of_split,
    require_expected,
    same_shares,
    split_at,
    told,
    with_split,
)

APPLICATIONS = "/api/serve/applications/"
_REDACTED = "<redacted>"
_KEPT = ("proxy_location", "http_options", "grpc_options", "target_capacity")
"""What the answer says of the instance, and a config says too."""


class ServeApi:
    """Implements `SplitStore`."""

    def __init__(
        self,
        url: str,
        application: str,
        model: str,
        token: str | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = JsonClient(url, headers, sleep=sleep)
        self._url = url
        self._application = application
        self._model = model

    async def read(self) -> Shares:
        """As in `SplitStore`."""
        _, applications = await self._config()
        at = path_of_split(applications, self._application, self._model)
        return split_at(applications, at)

    async def change(self, expected: Mapping[str, int], wanted: Mapping[str, int]) -> None:
        """As in `SplitStore`."""
        details, applications = await self._config()
        at = path_of_split(applications, self._application, self._model)
        require_expected(split_at(applications, at), expected)
        config = {name: details[name] for name in _KEPT if details.get(name) is not None}
        config["applications"] = with_split(applications, at, wanted)
        try:
            await self._client.ask("PUT", APPLICATIONS, config)
        except Refused as refused:
            raise _refusal(self._url, refused) from None
        found = await self.read()
        if not same_shares(found, wanted):
            raise SplitChangedError(
                f"{self._url} took {told(wanted)}, and now has {told(found)}: somebody else "
                "changes the split as well"
            )

    async def close(self) -> None:
        """As in `SplitStore`."""
        await self._client.close()

    async def _config(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What the API says of the instance, and the config of each application."""
        try:
            details = await self._client.ask("GET", APPLICATIONS)
        except Refused as refused:
            raise _refusal(self._url, refused) from None
        if not isinstance(details, dict) or not isinstance(details.get("applications"), dict):
            raise SplitUnreachableError(
                f"{self._url}{APPLICATIONS} is no Serve API: {details!r:.99}"
            )
        applications = []
        for name, application in details["applications"].items():
            config = application.get("deployed_app_config")
            if config is None:
                raise ConfigError(
                    f"application {name!r} was not deployed from a config, so it cannot be put "
                    "back as it is: deploy it with `serve deploy`"
                )
            applications.append(config)
        if _REDACTED in _texts(applications):
            raise ConfigError(
                f"{self._url} hides environment variables ({_REDACTED}): putting that back would "
                "destroy them. Set RAY_DASHBOARD_REDACT_RUNTIME_ENV=0 on the Ray head"
            )
        return details, applications


def _refusal(url: str, refused: Refused) -> ConfigError:
    if refused.status in (401, 403):
        return ConfigError(
            f"{url} needs Ray's token: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH ({refused.text})"
        )
    return ConfigError(f"{url} refused the split ({refused.status}): {refused.text}")


def _texts(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(_texts(each) for each in value.values()))
    if isinstance(value, list):
        return set().union(*(_texts(each) for each in value))
    return {value} if isinstance(value, str) else set()
