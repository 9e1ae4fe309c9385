"""What QuanTile asks of an engine, and how one is found by name.

An engine is started from an `EngineSpec` and is then an ASGI application that speaks OpenAI's
protocol, plus its health. Implementations are imported only when they are asked for, so that
nothing but a vLLM replica ever imports vLLM.
"""

import importlib
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from serve_app.config.schema import EngineSettings
from serve_app.engines.samples import Sample

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Coroutine[Any, Any, None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class EngineSpec:
    """What to start: the names it answers to (the first is its own), the weights, the settings."""

    served_names: tuple[str, ...]
    checkpoint_dir: Path | None
    settings: EngineSettings
    model_uri: str | None = None
    """What the engine's own loader streams the model from, in place of a folder."""


@dataclass(frozen=True)
class EngineLoad:
    """How busy an engine is at this moment; None where it does not say."""

    running: int | None
    """Requests that it works on."""
    waiting: int | None
    """Requests that it took and holds back."""
    kv_use: float | None
    """Share of its KV cache in use, from 0 to 1."""


class Engine(Protocol):
    """A running engine."""

    app: ASGIApp
    """OpenAI's protocol over ASGI. Its lifespan belongs to the replica that hosts it."""
    context_length: int
    """Most tokens of prompt and answer together that one request may have."""
    version: str
    """Name and version, as `vllm 0.32.0`."""
    facts: dict[str, str]
    """What a measurement of it has to say: versions, flags, kernels, device. Known once it runs."""

    @property
    def alive(self) -> bool:
        """False once the engine can serve nothing any more; cheap enough to ask per request."""

    def load(self) -> EngineLoad:
        """How busy it is; cheap enough to ask several times a second."""

    async def samples(self) -> list[Sample]:
        """Its own metrics now, a few milliseconds in pieces that let requests through. Empty where
        it has none. Raises EngineError."""

    async def check_health(self) -> None:
        """Raise EngineError if the engine is dead."""

    async def shutdown(self) -> None:
        """Stop the engine and every process of it; safe to call twice."""


ENGINES: dict[str, str] = {
    "vllm": "serve_app.engines.vllm_engine:start",
    "llamacpp": "serve_app.engines.llamacpp_engine:start",
    "fake": "serve_app.engines.fake_engine:start",
}


def prepare_engine(spec: EngineSpec) -> None:
    """Import what an engine's start needs and check its settings: no memory of a device.

    It takes seconds, in which a replica should not keep others from starting. Raises ConfigError,
    CheckpointError.
    """
    if spec.settings.kind != "fake":
        module = ENGINES[spec.settings.kind].partition(":")[0]
        importlib.import_module(module).prepare(spec)


def engines_run_on_cpu() -> bool:
    """Whether the vLLM that is installed serves from the machine's memory, not from a GPU's."""
    return bool(importlib.import_module("serve_app.engines.vllm_engine").runs_on_cpu())


async def start_engine(spec: EngineSpec) -> Engine:
    """Start the engine that the settings name; returns when it can take requests.

    Raises ConfigError for settings that the engine refuses, EngineError when it does not start.
    """
    module, function = ENGINES[spec.settings.kind].split(":")
    engine: Engine = await getattr(importlib.import_module(module), function)(spec)
    return engine
