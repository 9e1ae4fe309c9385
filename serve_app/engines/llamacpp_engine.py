"""llama.cpp as an engine: `engine: {kind: llamacpp}` with a GGUF checkpoint.

The server is llama.cpp's own, in a process of its own: an assertion that fails in it ends that
process, and not the replica.
"""

import os

from serve_app.config.schema import EngineSettings
from serve_app.domain.errors import ConfigError, EngineError
from serve_app.engines.engine import EngineLoad, EngineSpec
from serve_app.engines.llamacpp_app import LlamaCppApp
from serve_app.engines.llamacpp_child import LlamaCppChild, new_socket
from serve_app.engines.llamacpp_lib import (
    LLAMA_CPP,
    WHEEL,
    WHEEL_VERSION,
    library,
    require_wheel,
    system_info,
)
from serve_app.engines.llamacpp_process import ChildSettings
from serve_app.engines.samples import Sample, app_samples
from serve_app.node.host import cpu_model
from serve_app.planning.llamacpp import DEFAULT_BATCH_TOKENS, DEFAULT_MAX_NUM_SEQS
from serve_app.store.gguf_config import gguf_config
from serve_app.store.gguf_header import read_gguf_header
from serve_app.store.gguf_tokenizer import gguf_file, require_tokenizer
from serve_app.store.source import LocalSource


class LlamaCppEngine:
    """A running llama.cpp, and the OpenAI application in front of it."""

    def __init__(self, app: LlamaCppApp, child: LlamaCppChild, facts: dict[str, str]) -> None:
        self.app = app
        self.context_length = app.context_length
        self.version = LLAMA_CPP
        self.facts = facts
        self._child = child

    @property
    def alive(self) -> bool:
        """False once llama.cpp's process has ended."""
        return self._child.alive

    def load(self) -> EngineLoad:
        """Requests in its slots, and those that wait for one. How full they are is not told."""
        busy, slots = self.app.n_open, self.app.n_slots
        return EngineLoad(running=min(busy, slots), waiting=max(0, busy - slots), kv_use=None)

    async def samples(self) -> list[Sample]:
        """What its `/metrics` page says."""
        return await app_samples(self.app)

    async def check_health(self) -> None:
        """Raise EngineError if llama.cpp's process has ended."""
        if not self.alive:
            raise EngineError(f"llama.cpp's process has ended: {self._child.last_words()}")

    async def shutdown(self) -> None:
        """End llama.cpp's process."""
        await self.app.close()
        await self._child.stop()


def prepare(spec: EngineSpec) -> None:
    """Check the wheel, the file and the settings: milliseconds, and no memory.

    Raises ConfigError, CheckpointError.
    """
    require_wheel()
    child_settings(spec, socket="")


def child_settings(spec: EngineSpec, socket: str) -> ChildSettings:
    """What llama.cpp's process is told. Raises ConfigError, CheckpointError."""
    settings = spec.settings
    if spec.checkpoint_dir is None:
        raise ConfigError("llama.cpp needs a GGUF: set `checkpoint`")
    file = gguf_file(spec.checkpoint_dir)
    header = read_gguf_header(LocalSource(file.parent), file.name)
    require_tokenizer(header, str(file))
    trained = int(gguf_config(header, str(file)).get("max_position_embeddings") or 0)
    longest = settings.max_model_len or trained
    if not 0 < longest <= trained:
        raise ConfigError(f"max_model_len is {longest}, and {file} has 1 to {trained}")
    return ChildSettings(
        file=str(file),
        socket=socket,
        parent_pid=os.getpid(),
        names=spec.served_names,
        context_length=longest,
        n_slots=settings.max_num_seqs or DEFAULT_MAX_NUM_SEQS,
        n_batch=settings.max_num_batched_tokens or DEFAULT_BATCH_TOKENS,
        n_threads=settings.threads or os.cpu_count() or 1,
    )


async def start(spec: EngineSpec) -> LlamaCppEngine:
    """Start llama.cpp as the specification says.

    Raises ConfigError, CheckpointError, EngineError.
    """
    require_wheel()
    library()  # refuse a library that is another than the wheel's version says, before it serves
    settings = child_settings(spec, new_socket())
    child = await LlamaCppChild.start(settings)
    app = LlamaCppApp(spec.served_names, child, settings)
    return LlamaCppEngine(app, child, _facts(settings, spec.settings))


def _facts(child: ChildSettings, settings: EngineSettings) -> dict[str, str]:
    known = {
        "engine": f"{LLAMA_CPP} ({WHEEL} {WHEEL_VERSION})",
        "device": cpu_model(),
        "threads": child.n_threads,
        "max_model_len": child.context_length,
        "max_num_seqs": child.n_slots,
        "max_num_batched_tokens": child.n_batch,
        "kv_cache_dtype": "float16",
        "kernel.all": system_info(),
    }
    return {name: str(value) for name, value in known.items() if value is not None}
