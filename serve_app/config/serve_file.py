"""Read a Ray Serve config file as QuanTile sees it, and find what is wrong with it as a whole."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from serve_app.config.parse import parse, read_yaml
from serve_app.config.resilience import check_drain
from serve_app.config.scaling import check_scaling
from serve_app.config.schema import RouterArgs, RouterUserConfig, VariantArgs
from serve_app.domain.errors import ConfigError
from serve_app.domain.traffic import AliasRules

VARIANT_IMPORT = "serve_app.app:variant"
ROUTER_IMPORT = "serve_app.app:router"
ROUTE_PREFIX = "/variants/"
STOP_S = 30.0
"""Serve's time for a replica to end, where the file does not say."""


def load_serve_file(path: Path) -> dict[str, Any]:
    """The file's content. Raises ConfigError if it is missing or no YAML mapping."""
    content = read_yaml(path)
    if not isinstance(content, dict) or not isinstance(content.get("applications"), list):
        raise ConfigError(f"{path} is not a Ray Serve config: it needs a list `applications`")
    _mappings(content["applications"], f"{path}: applications")
    return content


def check_serve_file(path: Path) -> list[VariantArgs]:
    """`check_serve_content` of the file. Raises ConfigError, also if it cannot be read."""
    return check_serve_content(load_serve_file(path), path)


def check_serve_content(
    content: dict[str, Any], path: Path, *, planned: bool = True
) -> list[VariantArgs]:
    """The variants that the content of the file at `path` serves, in its order.

    With `planned` False, autoscaling may lack the numbers that a plan is yet to write.

    Raises ConfigError for unknown keys, a split over variants that the file does not serve, names
    and route prefixes that do not belong together, variants of another model than the router's, or
    a router that asks another port than Serve listens on, autoscaling that contradicts the plan.
    """
    applications = content["applications"]
    served_by = [item for item in applications if item.get("import_path") == VARIANT_IMPORT]
    variants = [_variant(item, path) for item in served_by]
    routers = [item for item in applications if item.get("import_path") == ROUTER_IMPORT]
    if len(routers) != 1:
        raise ConfigError(f"{path} needs one application {ROUTER_IMPORT}, has {len(routers)}")
    router = parse(RouterArgs, routers[0].get("args") or {}, where=f"{path}: router args")
    _check_port(router, content, path)
    user_config = router_user_config(routers[0], path)
    _check_drain(routers[0], user_config, path)
    aliases = router_aliases(routers[0], router, path)
    served = [args.name for args in variants]
    for name in served:
        if served.count(name) > 1:
            raise ConfigError(f"{path} serves variant {name} twice: rename or remove one")
    unserved = [name for name in user_config.variants if name not in served]
    if unserved:
        raise ConfigError(
            f"{path}: the split names {', '.join(unserved)}, "
            f"but the file serves {', '.join(served)}"
        )
    unlisted = [name for name in served if name not in user_config.variants]
    if unlisted:
        raise ConfigError(
            f"{path} serves {', '.join(unlisted)}, which the split does not list, so nothing "
            "reaches it: give it a share, or 0 to reach it by its pin alone"
        )
    for args in variants:
        if args.model != router.model:
            raise ConfigError(
                f"{path}: variant {args.name} is of model {args.model!r}, "
                f"the router of {router.model!r}"
            )
        _check_names(args, router.model, aliases, path)
    try:
        check_scaling(served_by, variants, user_config.sleepers, planned=planned)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return variants


def _check_port(router: RouterArgs, content: dict[str, Any], path: Path) -> None:
    port = (content.get("http_options") or {}).get("port", 8000)
    if urlsplit(router.ingress_url).port != port:
        raise ConfigError(
            f"{path}: the router looks for variants at {router.ingress_url}, but Serve listens on "
            f"port {port}: set the router's ingress_url to http://127.0.0.1:{port}"
        )


def _check_drain(router: dict[str, Any], config: RouterUserConfig, path: Path) -> None:
    settings = _router_deployment(router, path) or {}
    stop_s = settings.get("graceful_shutdown_timeout_s", STOP_S)
    try:
        check_drain(config.resilience, float(stop_s))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


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


def _check_names(args: VariantArgs, model: str, aliases: dict[str, AliasRules], path: Path) -> None:
    """The engine refuses names that it was not told of."""
    wanted = {alias for alias, rules in aliases.items() if args.name in rules.split.shares_bp}
    if missing := sorted(wanted - {model, *args.aliases}):
        raise ConfigError(
            f"{path}: the router's aliases send {', '.join(missing)} to variant {args.name}, which "
            f"does not serve that name: set its args' `aliases` to {sorted(wanted - {model})}"
        )


def router_aliases(router: dict[str, Any], args: RouterArgs, path: Path) -> dict[str, AliasRules]:
    """The rules of the router's application by public name. Raises ConfigError."""
    user_config = router_user_config(router, path)
    try:
        return user_config.to_aliases(args.model)
    except ConfigError as error:
        raise ConfigError(f"{path}: user_config: {error}") from None


def router_user_config(router: dict[str, Any], path: Path) -> RouterUserConfig:
    """The `user_config` of the router's application. Raises ConfigError if it has none."""
    deployment = _router_deployment(router, path)
    if deployment is None or not deployment.get("user_config"):
        raise ConfigError(f"{path}: the deployment VariantRouter needs a user_config with a split")
    return parse(RouterUserConfig, deployment["user_config"], where=f"{path}: user_config")


def _router_deployment(router: dict[str, Any], path: Path) -> dict[str, Any] | None:
    deployments = _mappings(router.get("deployments") or [], f"{path}: router deployments")
    return next((each for each in deployments if each.get("name") == "VariantRouter"), None)


def _mappings(items: list[Any], where: str) -> list[dict[str, Any]]:
    for item in items:
        if not isinstance(item, dict):
            raise ConfigError(f"{where} holds {item!r}: each entry is a mapping with a `name`")
    return items
