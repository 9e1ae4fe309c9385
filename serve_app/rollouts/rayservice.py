"""The split in a RayService: `spec.serveConfigV2` is changed by a merge patch.

The patch carries the `resourceVersion` that was read, so that the API server refuses it (409) where
the resource was changed meanwhile. Mostly that is KubeRay, which writes its status there: it is
read and written again, as long as the split is the expected one. KubeRay then puts the new config
to Serve, without a restart.
"""

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from serve_app.config.rollout import RayServiceTarget
from serve_app.domain.errors import ConfigError
from serve_app.fleet.yaml_edit import compose, end_of, find_node
from serve_app.splits.http import JsonClient, Refused, Sleep
from serve_app.splits.live_split import (
    Shares,
    SplitChangedError,
    path_of_split,
    require_expected,
    same_shares,
    split_at,
    with_split,
)

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
IN_CLUSTER = "https://kubernetes.default.svc"
CONFLICTS = 5
"""Times that a write may meet another one before we give up."""
MERGE_PATCH = "application/merge-patch+json"


class RayServiceApi:
    """Implements `SplitStore`. The account needs `get` and `patch` on `rayservices`."""

    def __init__(
        self,
        target: RayServiceTarget,
        model: str,
        account: Path = ACCOUNT,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._path = f"/apis/ray.io/v1/namespaces/{target.namespace}/rayservices/{target.name}"
        self._name = f"RayService {target.namespace}/{target.name}"
        self._application = target.application
        self._model = model
        headers: dict[str, str] = {}
        context: Any = True
        if target.api_url is None:
            token, authority = account / "token", account / "ca.crt"
            if not token.is_file():
                raise ConfigError(
                    f"not in a pod with a service account ({token} is missing): set "
                    "target.api_url, for instance to that of `kubectl proxy`"
                )
            headers = {"Authorization": f"Bearer {token.read_text().strip()}"}
            context = ssl.create_default_context(cafile=str(authority))
        self._client = JsonClient(target.api_url or IN_CLUSTER, headers, ssl=context, sleep=sleep)

    async def read(self) -> Shares:
        """As in `SplitStore`."""
        _, _, applications = await self._config()
        at = path_of_split(applications, self._application, self._model)
        return split_at(applications, at)

    async def change(self, expected: Mapping[str, int], wanted: Mapping[str, int]) -> None:
        """As in `SplitStore`. KubeRay carries it out within seconds after."""
        for _ in range(CONFLICTS):
            version, text, applications = await self._config()
            at = path_of_split(applications, self._application, self._model)
            require_expected(split_at(applications, at), expected)
            patch = {
                "metadata": {"resourceVersion": version},
                "spec": {"serveConfigV2": changed_text(text, applications, at, wanted)},
            }
            try:
                await self._client.ask("PATCH", self._path, patch, MERGE_PATCH)
            except Refused as refused:
                if refused.status != 409:
                    raise self._refusal(refused) from None
                # a patch whose answer was lost, and that was sent again, meets its own change
                if same_shares(await self.read(), wanted):
                    return
            else:
                return
        raise SplitChangedError(
            f"{self._name} was changed {CONFLICTS} times between our reading and writing it; "
            "nothing was written. Run again"
        )

    async def close(self) -> None:
        """As in `SplitStore`."""
        await self._client.close()

    async def _config(self) -> tuple[str, str, list[dict[str, Any]]]:
        """(resourceVersion, the Serve config's text, its applications)."""
        try:
            found = await self._client.ask("GET", self._path)
        except Refused as refused:
            raise self._refusal(refused) from None
        try:
            text = found["spec"]["serveConfigV2"]
            applications = yaml.safe_load(text)["applications"]
            return found["metadata"]["resourceVersion"], text, applications
        except (KeyError, TypeError, yaml.YAMLError) as error:
            raise ConfigError(
                f"{self._name} has no Serve config that can be read: {error!r}"
            ) from None

    def _refusal(self, refused: Refused) -> ConfigError:
        fix = {
            401: "the service account's token is not taken",
            403: "the account needs `get` and `patch` on rayservices.ray.io",
            404: "there is no such resource: see `kubectl get rayservices`",
        }.get(refused.status, "see the answer")
        return ConfigError(f"{self._name}: {refused.status}, {fix}: {refused.text}")


def changed_text(
    text: str,
    applications: list[dict[str, Any]],
    at: tuple[int, int, tuple[str, ...]],
    wanted: Mapping[str, int],
) -> str:
    """The config's text with that split; comments and all else stay where it can be edited so.

    Where the split is an alias or the like the config is written out anew, without comments.
    """
    content = yaml.safe_load(text)
    goal = {**content, "applications": with_split(applications, at, wanted)}
    node = _split_node(text, at)
    if node is not None:
        flow = "{" + ", ".join(f"{name}: {share}" for name, share in wanted.items()) + "}"
        start, end = node.start_mark.index, end_of(text, node)
        if not node.flow_style:
            start = text.rindex(":", 0, start) + 1
            flow = f" {flow}"
        edited = text[:start] + flow + text[end:]
        try:
            if yaml.safe_load(edited) == goal:
                return edited
        except yaml.YAMLError:
            pass
    return yaml.safe_dump(goal, sort_keys=False)


def _split_node(text: str, at: tuple[int, int, tuple[str, ...]]) -> yaml.MappingNode | None:
    index, place, keys = at
    node: Any = find_node(compose(text), "applications")
    steps: tuple[int | str, ...] = (index, "deployments", place, "user_config", *keys)
    for step in steps:
        if isinstance(step, int):
            node = node.value[step] if isinstance(node, yaml.SequenceNode) else None
        else:
            node = find_node(node, step)
    return node if isinstance(node, yaml.MappingNode) else None
