"""vLLM's own OpenAI server, without its process: its FastAPI application over its `AsyncLLM`.

With `vllm_args`, the serving side's only importer of vllm.
"""

import asyncio
import importlib
import logging
import os
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, distribution, version
from types import SimpleNamespace
from typing import Any

from serve_app.config.tracing import TRACES_PROTOCOL, traces_endpoint, traces_protocol
from serve_app.domain.errors import EngineError
from serve_app.engines.engine import ASGIApp, EngineLoad, EngineSpec
from serve_app.engines.samples import Sample, family_samples
from serve_app.engines.vllm_facts import flags
from serve_app.node.host import cpu_model

_START_IMPORTS = (
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.launchers.app",
)

_WORKER_EXTENSION = "serve_app.engines.vllm_facts.FactsReport"

logger = logging.getLogger("ray.serve")


def prepare_environment(threads: int | None) -> None:
    """Set what vLLM reads from the environment, before it is imported; the user's values win.

    Two of the user's go: `VLLM_API_KEY`, since the router checks keys and vLLM would refuse all
    that it relays, and `VLLM_CPU_KVCACHE_SPACE`, since it overrides the planned cache size. Where
    traces are wanted: vLLM reads OTLP's protocol from one of its two variables alone, and its spans
    would come from an `unknown_service`.

    With vLLM's CPU build: one engine process instead of two (the executor runs inside the engine
    core, so nothing spins between them: `serve_app/decisions/0004-cpu-engine.md`), and 4-bit
    checkpoints computed as 4-bit weights with 16-bit activations, not silently with 8-bit ones.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.pop("VLLM_API_KEY", None)
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    if runs_on_cpu():
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_INT4_W4A8", "0")
    if traces_endpoint(os.environ) is not None:
        os.environ.setdefault(TRACES_PROTOCOL, traces_protocol(os.environ))
        os.environ.setdefault("OTEL_SERVICE_NAME", "vllm")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


_OWN_METRICS = "vllm:"
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
KV_USE = "vllm:kv_cache_usage_perc"
"""Share of blocks in use, 0 to 1."""


def _gauge(name: str) -> list[float]:
    """A gauge's value for each engine core of this process."""
    from prometheus_client import REGISTRY

    metrics = REGISTRY.restricted_registry([name]).collect()
    return [sample.value for metric in metrics for sample in metric.samples]


def runs_on_cpu() -> bool:
    """Whether the vLLM that is installed is its CPU build."""
    try:
        distribution("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


class VllmEngine:
    """One vLLM engine in processes of its own, and the OpenAI application in front of it."""

    def __init__(
        self, client: Any, app: ASGIApp, stack: AsyncExitStack, facts: dict[str, str]
    ) -> None:
        self.app = app
        self.context_length = int(client.model_config.max_model_len)
        self.version = facts["engine"]
        self.facts = facts
        self._client = client
        self._stack = stack

    @property
    def alive(self) -> bool:
        """False once vLLM's engine core has died."""
        return not self._client.errored

    def load(self) -> EngineLoad:
        """What vLLM's own gauges say; nothing where `disable_log_stats` turned them off."""
        running, waiting = _gauge(RUNNING), _gauge(WAITING)
        kv_use = _gauge(KV_USE)
        return EngineLoad(
            running=round(sum(running)) if running else None,
            waiting=round(sum(waiting)) if waiting else None,
            kv_use=sum(kv_use) / len(kv_use) if kv_use else None,
        )

    async def samples(self) -> list[Sample]:
        """vLLM's own, of this process's registry; none with `disable_log_stats`."""
        from prometheus_client import REGISTRY

        found: list[Sample] = []
        for family in REGISTRY.collect():
            if family.name.startswith(_OWN_METRICS):
                found += family_samples([family])
                await asyncio.sleep(0)
        return found

    async def check_health(self) -> None:
        """Raise EngineError with vLLM's reason if its engine core has died."""
        try:
            await self._client.check_health()
        except Exception as error:
            raise EngineError(f"vLLM's engine is dead: {error!r}") from error

    async def shutdown(self) -> None:
        """Stop the engine core and its workers."""
        await self._stack.aclose()


def prepare(spec: EngineSpec) -> None:
    """Import what `start` needs and check the settings: seconds, and no device memory.

    Raises ConfigError for settings that vLLM's parser refuses.
    """
    prepare_environment(spec.settings.threads)
    for module in _START_IMPORTS:
        importlib.import_module(module)
    from serve_app.engines.vllm_args import server_arguments

    server_arguments(spec)


async def start(spec: EngineSpec) -> VllmEngine:
    """Start vLLM as the specification says. Raises ConfigError or EngineError."""
    prepare_environment(spec.settings.threads)
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.entrypoints.launchers.app import build_app
    from vllm.platforms import current_platform

    from serve_app.engines.vllm_args import server_arguments

    args = server_arguments(spec)
    if current_platform.is_cpu() and args.distributed_executor_backend is None:
        args.distributed_executor_backend = (
            "uni" if spec.settings.tensor_parallel_size == 1 else "mp"
        )
    args.worker_extension_cls = args.worker_extension_cls or _WORKER_EXTENSION
    stack = AsyncExitStack()
    try:
        client = await stack.enter_async_context(build_async_engine_client(args))
        tasks = await client.get_supported_tasks()
        app = build_app(args, tasks, client.model_config)
        await init_app_state(client, app.state, args, tasks)
        app.state.server = SimpleNamespace(should_exit=False)  # vLLM's error handlers look at it
        facts = await _facts(client, spec.settings.threads)
    except asyncio.CancelledError:  # Serve gives this replica up: leave no engine core behind
        await stack.aclose()
        raise
    except Exception as error:
        await stack.aclose()
        raise EngineError(
            f"vLLM did not start on {spec.model_uri or spec.checkpoint_dir}: {error}; the cause is "
            "above in this replica's log"
        ) from error
    return VllmEngine(client, app, stack, facts)


async def _facts(client: Any, threads: int | None) -> dict[str, str]:
    """What a measurement of the engine has to say. What its worker cannot tell is left out."""
    from vllm import __version__
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    known = {
        "engine": f"vllm {__version__}",
        "torch": version("torch"),
        "device": cpu_model() if on_cpu else current_platform.get_device_name(),
        "threads": threads,
    }
    facts = {name: str(value) for name, value in known.items() if value is not None}
    facts |= flags(client.vllm_config)
    try:
        first_rank: dict[str, str] = (await client.collective_rpc("quantile_facts"))[0]
        return facts | first_rank
    except Exception as error:  # another extension was asked for, or another vLLM's layers
        logger.warning("the engine's kernels are not known: %r", error)
        return facts
