"""The router below a prefix, so that several fit into one Serve instance."""

from collections.abc import Mapping
from typing import Any

from loadtests.relay_bench.upstream import MODEL, NAME
from serve_app.config.schema import RouterArgs
from serve_app.engines.engine import ASGIApp, Receive, Scope, Send
from serve_app.serving.variant_router import VariantRouter

SPLIT: dict[str, Any] = {"split": {NAME: 10_000}, "fallback": []}
NO_ACCESS_LOG = {"enable_access_log": False}
"""As in configs/prod.yaml; the peers write none either."""
OPTIONS: dict[str, Any] = {
    "max_ongoing_requests": 1000,
    "ray_actor_options": {"num_cpus": 0},
    "logging_config": NO_ACCESS_LOG,
}


class BareRouter(VariantRouter):
    """Serves as if it were mounted at `/`."""

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve once."""
        app = await super().__serve_build_asgi_app__()

        async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                path = scope["path"].removeprefix(scope.get("root_path", ""))
                scope = {**scope, "path": path, "root_path": ""}
            await app(scope, receive, send)

        return mounted


def args_for(port: int) -> RouterArgs:
    """Arguments of a router whose variant is behind this port."""
    return RouterArgs(model=MODEL, ingress_url=f"http://127.0.0.1:{port}")


def deployment(cls: type, user_config: Mapping[str, Any], **more: Any) -> Any:
    """A Serve deployment of a router's class, named as the class is."""
    from ray import serve

    options = {**OPTIONS, **more}
    return serve.deployment(name=cls.__name__, user_config=dict(user_config), **options)(
        serve.ingress()(cls)
    )
