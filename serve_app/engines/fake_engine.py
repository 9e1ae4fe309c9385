"""The fake engine behind the real one's interface: `engine: {kind: fake, fake: {...}}`."""

from typing import TYPE_CHECKING

import msgspec

from serve_app.domain.errors import EngineError
from serve_app.engines.engine import EngineLoad, EngineSpec
from serve_app.engines.fake import FakeEngine as FakeApp
from serve_app.engines.fake import create_app
from serve_app.engines.fake_script import FakeScript
from serve_app.engines.samples import Sample, app_samples

if TYPE_CHECKING:
    from serve_app.engines.fake_child import FakeChildEngine


class FakeEngine:
    """A scripted engine; it lives and dies with the replica."""

    def __init__(self, app: FakeApp) -> None:
        self.app = app
        self.context_length = app.script.max_model_len
        self.version = "fake"
        self.facts = {"engine": self.version, **_texts(app.script)}

    @property
    def alive(self) -> bool:
        """Whether the script lets health checks pass."""
        return self.app.script.health_status() == 200

    def load(self) -> EngineLoad:
        """Its counts; the cache is as full as the script's `max_num_seqs` is used up."""
        slots = self.app.script.max_num_seqs
        kv_use = self.app.running / slots if slots else None
        return EngineLoad(self.app.running, self.app.waiting, kv_use)

    async def samples(self) -> list[Sample]:
        """What its `/metrics` page says."""
        return await app_samples(self.app)

    async def check_health(self) -> None:
        """Raise EngineError where the script refuses health."""
        if not self.alive:
            raise EngineError(
                f"the script answers health checks with {self.app.script.health_status()}"
            )

    async def shutdown(self) -> None:
        """Nothing runs outside the replica."""


def _texts(script: FakeScript) -> dict[str, str]:
    """What the script says, as JSON; what it leaves open is left out."""
    said = msgspec.to_builtins(script).items()
    return {name: msgspec.json.encode(value).decode() for name, value in said if value is not None}


async def start(spec: EngineSpec) -> "FakeEngine | FakeChildEngine":
    """A fake engine as scripted, in this process or one of its own.

    Raises ConfigError for a script that is out of range, EngineError if its process does not start.
    """
    script = FakeScript.from_dict(spec.settings.fake)
    if script.own_process:
        from serve_app.engines import fake_child  # it needs aiohttp, which not every fake has

        return await fake_child.start(spec.served_names, script)
    return FakeEngine(create_app(spec.served_names, script))
