"""The router's deployment class: Ray Serve makes it, reconfigures it, and ends it."""

import logging
from collections.abc import Mapping
from typing import Any

from serve_app.config.parse import parse
from serve_app.config.schema import RouterArgs, RouterUserConfig
from serve_app.config.secrets import internal_token
from serve_app.domain.errors import ConfigError
from serve_app.engines.engine import ASGIApp
from serve_app.serving.relay import IngressRelay, Relay
from serve_app.serving.router_app import RouterApp
from serve_app.telemetry.meters import Meters, serve_meters

logger = logging.getLogger("ray.serve")


class VariantRouter:
    """One replica of the router; its split comes from `user_config` and changes live."""

    def __init__(self, args: RouterArgs) -> None:
        self._args = args
        self._app: RouterApp | None = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve once, in the loop that serves requests, before `reconfigure`."""
        relay = self.make_relay(internal_token())
        self._app = RouterApp(self._args, relay, self.make_meters(), in_serve=True)
        return self._app

    def make_relay(self, token: str) -> Relay:
        """The way to the variants."""
        return IngressRelay(self._args.ingress_url, token, self._args.connect_timeout_s)

    def make_meters(self) -> Meters:
        """What it counts and traces with."""
        return serve_meters()

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Called by Serve at the start and at every change of `user_config`.

        The start takes until the variants are seen, or `first_look_s`: Serve sends no requests
        before. Raises ConfigError then. Later a wrong one is refused and the last good one stays:
        Serve would answer an exception by replacing every router replica, and none would start.
        """
        assert self._app is not None
        is_start = self._app.aliases is None
        try:
            config = parse(RouterUserConfig, user_config, where="router user_config")
            self._app.configure(config)
        except ConfigError:
            if self._app.aliases is None:
                raise
            logger.exception("user_config refused; the last good one stays")
        if is_start and (missing := await self._app.first_look(self._args.first_look_s)):
            logger.warning("takes requests without having seen %s", ", ".join(missing))

    async def check_health(self) -> None:
        """Called by Serve. Without a split the router could only refuse."""
        if self._app is None or self._app.aliases is None:
            raise ConfigError(
                "the router has no user_config: give it a split (see configs/local.yaml)"
            )

    async def __del__(self) -> None:
        """Called by Serve when the replica ends."""
        if self._app is not None:
            self._app.close()
