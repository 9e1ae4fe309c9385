"""What a rollout talks to: Serve's REST API, the Kubernetes API, and a router's metrics page.

One server on a free port. `events` has what was asked; `on_event` is told first, so that a test can
kill whoever asked at that very moment.
"""

import copy
from collections.abc import Callable
from typing import Any

import yaml
from aiohttp import web

SERVE, RAYSERVICE = "/api/serve/applications/", "/apis/ray.io/v1/namespaces/prod/rayservices/q"
TOKEN = "the-token-of-this-test"


def serve_config(split: dict[str, int]) -> dict[str, Any]:
    """A config as it was deployed, with what a rollout must not touch."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "applications": [
            {
                "name": "router",
                "route_prefix": "/",
                "import_path": "serve_app.app:router",
                "args": {"model": "m"},
                "deployments": [
                    {
                        "name": "VariantRouter",
                        "num_replicas": 2,
                        "user_config": {"split": dict(split), "fallback": ["int8"]},
                    }
                ],
            },
            {
                "name": "int8",
                "route_prefix": "/variants/int8",
                "import_path": "serve_app.app:variant",
                "runtime_env": {"env_vars": {"HF_TOKEN": "secret"}},
                "args": {"model": "m", "name": "int8", "checkpoint": "/c", "method": "int8_w8a8"},
            },
        ],
    }


class FakeControlPlane:
    """`async with FakeControlPlane(split) as plane`: answers at `plane.url`."""

    def __init__(self, split: dict[str, int]) -> None:
        self.config = serve_config(split)
        self.comment = "# kept\n"
        self.version = 7
        self.token: str | None = None
        self.redacts = False
        self.imperative: set[str] = set()
        self.failures: list[int] = []
        """Statuses that the next requests get."""
        self.loses_answer = False
        self.puts: list[dict[str, Any]] = []
        self.patches: list[dict[str, Any]] = []
        self.events: list[str] = []
        self.on_event: Callable[[str], bool | None] = lambda event: None
        """Told of each event; True: the request is lost."""
        self.served = {"int8": 0, "gptq": 0}
        self.failed = {"int8": 0, "gptq": 0}
        self.failing_share = 0.0
        """Of the candidate's requests."""
        self.requests_a_read = 400

    @property
    def split(self) -> dict[str, int]:
        """What is in force."""
        deployment = self.config["applications"][0]["deployments"][0]
        return deployment["user_config"]["split"]

    async def __aenter__(self) -> "FakeControlPlane":
        app = web.Application()
        app.router.add_get(SERVE, self._get)
        app.router.add_put(SERVE, self._put)
        app.router.add_get(RAYSERVICE, self._get_resource)
        app.router.add_patch(RAYSERVICE, self._patch)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    @property
    def put_splits(self) -> list[dict[str, int]]:
        """The splits that were put, one after the other."""
        routers = [put["applications"][0]["deployments"][0] for put in self.puts]
        return [router["user_config"]["split"] for router in routers]

    def _event(self, name: str) -> bool:
        self.events.append(name)
        return bool(self.on_event(name))

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self.failures:
            return web.Response(status=self.failures.pop(0), text="as the test wished")
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401, text="Token authentication is enabled")
        return None

    async def _get(self, request: web.Request) -> web.Response:
        self._event("get")
        if refusal := self._refusal(request):
            return refusal
        applications = {}
        for application in copy.deepcopy(self.config["applications"]):
            if self.redacts and "runtime_env" in application:
                application["runtime_env"]["env_vars"] = {"HF_TOKEN": "<redacted>"}
            name = application["name"]
            config = None if name in self.imperative else application
            applications[name] = {"name": name, "status": "RUNNING", "deployed_app_config": config}
        rest = {key: value for key, value in self.config.items() if key != "applications"}
        return web.json_response(
            {**rest, "controller_info": {}, "proxies": {}, "target_capacity": None}
            | {"applications": applications}
        )

    async def _put(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self._event("put"):
            return web.Response(status=503)
        if refusal := self._refusal(request):
            return refusal
        self.puts.append(body)
        self.config = body
        self._event("after put")
        return web.Response()

    def _resource(self) -> dict[str, Any]:
        text = self.comment + yaml.safe_dump(self.config, sort_keys=False)
        metadata = {"name": "q", "namespace": "prod", "resourceVersion": str(self.version)}
        return {"metadata": metadata, "spec": {"serveConfigV2": text}}

    async def _get_resource(self, request: web.Request) -> web.Response:
        self._event("get")
        return self._refusal(request) or web.json_response(self._resource())

    async def _patch(self, request: web.Request) -> web.Response:
        patch = await request.json()
        self._event("patch")
        if refusal := self._refusal(request):
            return refusal
        if request.content_type != "application/merge-patch+json":
            return web.Response(status=415)
        if patch["metadata"]["resourceVersion"] != str(self.version):
            return web.Response(status=409, text="the object has been modified")
        self.patches.append(patch)
        self.version += 1
        self.config = yaml.safe_load(patch["spec"]["serveConfigV2"])
        self._event("after patch")
        if self.loses_answer:
            self.loses_answer = False
            return web.Response(status=502, text="the answer was lost")
        return web.json_response(self._resource())

    async def _metrics(self, request: web.Request) -> web.Response:
        """Each read finds more requests, by the split that is in force."""
        self._event("metrics")
        lines = []
        for name in self.served:
            n = self.requests_a_read if self.split.get(name) else 0
            failed = round(n * self.failing_share) if name == "gptq" else 0
            self.served[name] += n - failed
            self.failed[name] += failed
            for status, value in (("200", self.served[name]), ("500", self.failed[name])):
                labels = f'variant="{name}",reason="weighted",status="{status}"'
                lines.append(f"ray_quantile_router_requests_total{{{labels}}} {value}")
            for le in ("0.1", "+Inf"):
                labels = f'variant="{name}",le="{le}"'
                lines.append(
                    f"ray_quantile_router_ttft_seconds_bucket{{{labels}}} {self.served[name]}"
                )
        return web.Response(text="\n".join(lines) + "\n")
