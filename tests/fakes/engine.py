"""An engine around any ASGI application: implements `serve_app.engines.engine.Engine`."""

from serve_app.domain.errors import EngineError
from serve_app.engines.engine import ASGIApp, EngineLoad
from serve_app.engines.samples import Sample


class StubEngine:
    """Lives until `alive` is set to False."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.context_length = 2048
        self.version = "stub"
        self.facts = {"engine": "stub"}
        self.alive = True
        self.n_shutdowns = 0
        self.told: list[Sample] = []
        self.now = EngineLoad(running=0, waiting=0, kv_use=None)

    def load(self) -> EngineLoad:
        return self.now

    async def samples(self) -> list[Sample]:
        return self.told

    async def check_health(self) -> None:
        if not self.alive:
            raise EngineError("the stub is dead")

    async def shutdown(self) -> None:
        self.n_shutdowns += 1
