"""Make a Ray Serve config of ours as plain data: one router in front of its variants."""

from collections.abc import Iterable, Mapping
from typing import Any

from serve_app.config.serve_file import ROUTE_PREFIX, ROUTER_IMPORT, VARIANT_IMPORT

Content = dict[str, Any]


def serve_content(
    port: int,
    model: str,
    user_config: Mapping[str, Any],
    variants: Iterable[Content],
    router_args: Mapping[str, Any] | None = None,
    n_routers: int = 1,
) -> Content:
    """The whole file, on this machine alone; `variants` are `variant_application`s of `model`."""
    router = {
        "name": "router",
        "route_prefix": "/",
        "import_path": ROUTER_IMPORT,
        "args": {"model": model, "ingress_url": f"http://127.0.0.1:{port}", **(router_args or {})},
        "deployments": [
            {"name": "VariantRouter", "num_replicas": n_routers, "user_config": dict(user_config)}
        ],
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [router, *variants],
    }


def variant_application(args: Content, deployment: Mapping[str, Any] | None = None) -> Content:
    """One variant by its `VariantArgs` as data; `deployment`: what is set of its replicas."""
    application: Content = {
        "name": args["name"],
        "route_prefix": f"{ROUTE_PREFIX}{args['name']}",
        "import_path": VARIANT_IMPORT,
        "args": args,
    }
    if deployment:
        application["deployments"] = [{"name": "VariantServer", **deployment}]
    return application
