"""The router's application under uvicorn on a free port; behind it an ingress that tests script."""

import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Self

from serve_app.config.schema import RouterArgs, RouterUserConfig
from serve_app.serving.relay import IngressRelay
from serve_app.serving.router_app import RouterApp
from tests.fakes.metrics import recording_meters
from tests.fakes.raw_server import Peer, RawServer, answer
from tests.fakes.relay import FakeApplications, FakeSleepers, card_of
from tests.fakes.served import served

TOKEN = "0123456789abcdef"
Talk = Callable[[Peer], Awaitable[object]]


class RouterOnAPort:
    """`scripts[variant]` holds what happens to its requests, one after the other; the last stays.

    A script is told the peer after it has read the request. Cards are answered beside that.
    """

    def __init__(self, user_config: dict[str, Any], **args: Any) -> None:
        self.scripts: dict[str, list[Talk]] = {}
        self.asked: list[str] = []
        self.heads: dict[str, list[bytes]] = defaultdict(list)
        self.ingress = RawServer(self._talk)
        self.user_config = user_config
        self._args = args

    async def __aenter__(self) -> Self:
        await self.ingress.__aenter__()
        url = f"http://127.0.0.1:{self.ingress.port}"
        args = RouterArgs(model="m", ingress_url=url, probe_interval_s=0.5, **self._args)
        meters = recording_meters()
        self.metrics = meters.router
        relay = IngressRelay(url, TOKEN)
        self.app = RouterApp(args, relay, meters, FakeApplications(), FakeSleepers())
        self.configure(**self.user_config)
        self._served = served(self.app, http="httptools")
        host, port = await self._served.__aenter__()
        self.url = f"http://{host}:{port}"
        return self

    def configure(self, **user_config: Any) -> None:
        self.app.configure(RouterUserConfig.model_validate(user_config))

    async def __aexit__(self, *exception: Any) -> None:
        await self._served.__aexit__(*exception)
        self.app.close()
        await self.ingress.__aexit__(*exception)

    async def _talk(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            _, path, _ = request.split(b" ", 2)
            variant = path.decode().split("/")[2]
            if path.endswith(b"/quantile/card"):
                card = json.dumps(asdict(card_of(variant))).encode()
                await peer.say(answer(card, b"x-variant: " + variant.encode()))
                continue
            self.asked.append(variant)
            self.heads[variant].append(request.partition(b"\r\n\r\n")[0])
            scripts = self.scripts[variant]
            await (scripts.pop(0) if len(scripts) > 1 else scripts[0])(peer)
