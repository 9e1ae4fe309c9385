"""Read a Ray Serve config file as QuanTile sees it, and find what is wrong with it as a whole."""

from pathlib import Path
from typing import Any

import yaml

from serve_app.config.parse import parse
from serve_app.config.schema import RouterArgs, RouterUserConfig, VariantArgs
from serve_app.domain.errors import ConfigError

VARIANT_IMPORT = "serve_app.app:variant"
ROUTER_IMPORT = "serve_app.app:router"
ROUTE_PREFIX = "/variants/"


def load_serve_file(path: Path) -> dict[str, Any]:
    """The file's content. Raises ConfigError if it is missing or no YAML mapping."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("applications"), list):
        raise ConfigError(f"{path} is not a Ray Serve config: it needs a list `applications`")
    return content


def check_serve_file(path: Path) -> list[VariantArgs]:
    """The variants that the file serves, in its order.

    Raises ConfigError for unknown keys, a split over variants that the file does not serve, names
    and route prefixes that do not belong together, or variants of another model than the router's.
    """
    applications = load_serve_file(path)["applications"]
    variants = [
        _variant(item, path) for item in applications if item.get("import_path") == VARIANT_IMPORT
    ]
    routers = [item for item in applications if item.get("import_path") == ROUTER_IMPORT]
    if len(routers) != 1:
        raise ConfigError(f"{path} needs one application {ROUTER_IMPORT}, has {len(routers)}")
    model = parse(RouterArgs, routers[0].get("args") or {}, where=f"{path}: router args").model
    split = _split(routers[0], path)
    served = [args.name for args in variants]
    unserved = [name for name in split.to_split().variants if name not in served]
    if unserved:
        raise ConfigError(
            f"{path}: the split names {', '.join(unserved)}, "
            f"but the file serves {', '.join(served)}"
        )
    for args in variants:
        if args.model != model:
            raise ConfigError(
                f"{path}: variant {args.name} is of model {args.model!r}, the router of {model!r}"
            )
    return variants


def _variant(application: dict[str, Any], path: Path) -> VariantArgs:
    where = f"{path}: application {application.get('name')!r}"
    args = parse(VariantArgs, application.get("args") or {}, where=f"{where} args")
    expected = f"{ROUTE_PREFIX}{args.name}"
    if application.get("route_prefix") != expected:
        raise ConfigError(
            f"{where} has route_prefix {application.get('route_prefix')!r}; the router looks for "
            f"variant {args.name!r} at {expected!r}"
        )
    return args


def _split(router: dict[str, Any], path: Path) -> RouterUserConfig:
    for deployment in router.get("deployments") or []:
        if deployment.get("name") == "VariantRouter" and deployment.get("user_config"):
            return parse(RouterUserConfig, deployment["user_config"], where=f"{path}: user_config")
    raise ConfigError(f"{path}: the deployment VariantRouter needs a user_config with a split")
