"""The deployment class of one quantization variant: preflight, engine, application, health."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from serve_app.config.schema import GpuSettings, VariantArgs
from serve_app.config.secrets import internal_token
from serve_app.config.sizing import dtype_bytes
from serve_app.domain.checkpoint import Checkpoint, VariantCard
from serve_app.domain.errors import EngineError
from serve_app.domain.quant import NOMINAL_BITS, QuantScheme
from serve_app.engines.engine import ASGIApp, Engine, EngineSpec, start_engine
from serve_app.reference.locate import SCHEME, resolve
from serve_app.routing.pin import PIN_SEPARATOR
from serve_app.scaling.serve_policy import KV_USE, RUNNING, SERVED, WAITING
from serve_app.serving.judged import require_judged_here, setting_of
from serve_app.serving.start import start_in_turn
from serve_app.serving.variant_front import VariantFront
from serve_app.store.facts import checkpoint_facts
from serve_app.store.fetch import fetch_checkpoint, is_remote
from serve_app.store.inspect import inspect_checkpoint
from serve_app.store.seal import require_sealed
from serve_app.store.source import open_source
from serve_app.store.stream import is_streamed, stream_uri
from serve_app.telemetry.engine_metrics import EngineMetrics, keep_copying
from serve_app.telemetry.metrics import LoadMetrics, ServeLoadMetrics, ServeMemoryMetrics
from serve_app.telemetry.tracing import spans_of

logger = logging.getLogger("ray.serve")

ALIVE_INTERVAL_S = 0.5
LOAD_INTERVAL_S = 2.0
"""Between two samples of how busy the engine is; Ray hands them on every ten seconds or less."""


def preflight(args: VariantArgs) -> tuple[Path | None, Checkpoint]:
    """Have the checkpoint on this machine and make sure that it is what it is declared to be.

    One in S3 or on the hub is downloaded first, unless this node has it. Reads headers and, of a
    variant that QuanTile made and of what was downloaded before, every file once: it must be what
    passed the correctness gate. Raises CheckpointError. A fake engine has no checkpoint.
    """
    if args.engine.kind == "fake":
        return None, inspect_variant(args)
    if is_streamed(args.checkpoint, args.engine.engine_args):
        return None, inspect_variant(args)
    if is_remote(args.checkpoint):
        folder = fetch_checkpoint(args.checkpoint)
        checkpoint = inspect_checkpoint(folder, args.checkpoint)
        checkpoint.require_method(args.method)
        require_sealed(folder, is_verified=True)
        return folder, checkpoint
    checkpoint = inspect_variant(args)
    folder = resolve(args.checkpoint)
    require_sealed(folder)
    return folder, checkpoint


def inspect_variant(args: VariantArgs) -> Checkpoint:
    """The variant's checkpoint, wherever it is, after a look at its headers.

    The card of a fake engine shows the declared method and no bytes. Raises CheckpointError.
    """
    if args.engine.kind == "fake":
        scheme = QuantScheme(args.method, bits=NOMINAL_BITS[args.method], container="fake")
        return Checkpoint(args.checkpoint, 0, scheme, "none", 0)
    checkpoint = inspect_checkpoint(open_source(args.checkpoint), args.checkpoint)
    checkpoint.require_method(args.method)
    return checkpoint


def preflight_if_local(args: VariantArgs) -> None:
    """Refuse a wrong checkpoint before any replica starts, where this machine has the checkpoint.

    In a cluster the application may be built on a node without it; the replica checks again.
    """
    is_here = args.checkpoint.startswith(SCHEME) or Path(args.checkpoint).exists()
    if args.engine.kind != "fake" and is_here:
        preflight(args)


def engine_spec(args: VariantArgs, names: tuple[str, ...], folder: Path | None) -> EngineSpec:
    """What to start, in the replica that is to start it: on its own machine.

    Raises CheckpointError for a variant of ours that did not pass its gate with this engine and
    dtype on this kind of machine, ConfigError or CheckpointError for weights that cannot be
    streamed.
    """
    spec = EngineSpec(names, folder, args.engine)
    if is_streamed(args.checkpoint, args.engine.engine_args):
        logger.warning("%s: vLLM streams %s, unverified", args.name, args.checkpoint)
        uri = stream_uri(args.checkpoint, partial(setting_of, args.engine))
        return replace(spec, model_uri=uri)
    if folder is not None:
        require_judged_here(args, folder)
    return spec


class VariantServer:
    """One replica of one variant. Ray Serve makes it, asks its health, and ends it."""

    def __init__(
        self,
        args: VariantArgs,
        load_metrics: Callable[[str], LoadMetrics] = ServeLoadMetrics,
        engine_metrics: Callable[[VariantCard], EngineMetrics] = EngineMetrics,
    ) -> None:
        self._args = args
        self._load_metrics = load_metrics
        self._engine_metrics = engine_metrics
        self._spans = spans_of("quantile-variant")
        self._engine: Engine | None = None
        self._front: VariantFront | None = None
        self._watch: asyncio.Task[None] | None = None
        self._load_watch: asyncio.Task[None] | None = None
        self._metrics_copy: asyncio.Task[None] | None = None
        self._death_watch: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Start the engine; called by Serve once, before the replica takes requests.

        Raises CheckpointError, ConfigError or PlanError before anything is started, EngineError
        after, or when the engine's turn or memory does not come.
        """
        args = self._args
        folder, checkpoint = await asyncio.to_thread(preflight, args)  # a download takes minutes
        token = internal_token()
        models = (args.model, *args.aliases)
        names = (*(f"{model}{PIN_SEPARATOR}{args.name}" for model in models), *models)
        spec = await asyncio.to_thread(engine_spec, args, names, folder)
        engine = self._engine = await self._start(spec)
        card = VariantCard(
            name=args.name,
            method=args.method,
            scheme=checkpoint.told_scheme,
            bits=checkpoint.told_bits,
            weight_bytes=checkpoint.told_bytes,
            context_length=engine.context_length,
            engine=engine.version,
            facts={"checkpoint": args.checkpoint, **_set_aside(args), **engine.facts},
        )
        self._front = VariantFront(engine, card, token, self._spans)
        self._load_watch = asyncio.create_task(
            _publish_load(engine, card, self._load_metrics(args.name), args.gpu), name="load"
        )
        self._metrics_copy = asyncio.create_task(
            keep_copying(engine, self._engine_metrics(card)), name="engine metrics"
        )
        self._death_watch = asyncio.create_task(_tell_death(engine, args.name), name="death")
        return self._front

    async def _start(self, spec: EngineSpec) -> Engine:
        """Start the engine when it is its turn, and watch its memory from then on.

        A fake engine takes no memory: it waits for nobody and is not watched.
        """
        if spec.settings.kind == "fake":
            return await start_engine(spec)
        place = self._args.checkpoint if spec.checkpoint_dir is None else str(spec.checkpoint_dir)
        facts = checkpoint_facts(place, dtype_bytes(spec.settings))
        metrics = ServeMemoryMetrics(self._args.name)
        engine, watch = await start_in_turn(self._args, spec, facts, metrics)
        self._watch = watch.start()
        return engine

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve at intervals; `scaling.serve_policy` reads it in the controller."""
        assert self._engine is not None
        assert self._front is not None
        load = self._engine.load()
        stats = {
            RUNNING: load.running,
            WAITING: load.waiting,
            KV_USE: load.kv_use,
            SERVED: self._front.served_total,
        }
        return {name: float(value) for name, value in stats.items() if value is not None}

    async def check_health(self) -> None:
        """Called by Serve; an exception three times in a row has the replica replaced."""
        if self._engine is not None:
            await self._engine.check_health()

    async def __del__(self) -> None:
        """Called by Serve when the replica ends in good order."""
        for watch in (
            self._watch,
            self._load_watch,
            self._metrics_copy,
            self._death_watch,
        ):
            if watch is not None:
                watch.cancel()
        if self._engine is not None:
            await self._engine.shutdown()
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)


def _set_aside(args: VariantArgs) -> dict[str, str]:
    """The GPUs of one replica, as planned; nothing where none are planned."""
    if args.gpu is None or args.gpu.fraction is None:
        return {}
    return {
        "gpu_type": args.gpu.type,
        "gpu_fraction": str(args.gpu.fraction),
        "gpu_count": str(args.engine.tensor_parallel_size),
    }


async def _tell_death(engine: Engine, variant: str) -> None:
    """One line when the engine dies; Serve says no more than that its replica is unhealthy."""
    while engine.alive:  # noqa: ASYNC110 - engines have no event for it
        await asyncio.sleep(ALIVE_INTERVAL_S)
    said = "it does not say why"
    try:
        await engine.check_health()
    except EngineError as error:
        said = str(error)
    logger.error(
        "the engine of %s is dead: %s; Serve replaces this replica",
        variant,
        said,
        extra={"variant": variant, "engine": engine.version},
    )


async def _publish_load(
    engine: Engine, card: VariantCard, metrics: LoadMetrics, gpu: GpuSettings | None
) -> None:
    """Sampled, since counting at each step costs the engine a hundredth of its speed."""
    started_s = time.time()
    share = (gpu.type, gpu.fraction) if gpu is not None and gpu.fraction is not None else None
    while True:
        load = engine.load()
        metrics.load(load.running, load.waiting, load.kv_use)
        metrics.facts(card, started_s, share)
        await asyncio.sleep(LOAD_INTERVAL_S)
