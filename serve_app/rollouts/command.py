"""One run of `quantile rollout`: puts the parts together, and takes them apart again."""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from serve_app.config.rollout import RayServiceTarget, RolloutConfig
from serve_app.config.rollout_evidence import MetricsConfig, ProbesConfig
from serve_app.domain.errors import ConfigError
from serve_app.node.locks import RecordLock
from serve_app.rollouts.controller import Controller, Show
from serve_app.rollouts.display import Display
from serve_app.rollouts.evidence import Clock, Evidence
from serve_app.rollouts.evidence_campaign import CampaignEvidence
from serve_app.rollouts.evidence_metrics import MetricsEvidence
from serve_app.rollouts.evidence_probes import ProbeEvidence
from serve_app.rollouts.rayservice import RayServiceApi
from serve_app.rollouts.state import RolloutState, read_state
from serve_app.rollouts.words import headline
from serve_app.splits.http import ray_token
from serve_app.splits.live_split import SplitStore, told
from serve_app.splits.serve_api import ServeApi

CLOCK = Clock(time.monotonic, asyncio.sleep)
LINGER_S = 30.0
"""So that a Prometheus that asks every ten seconds sees the verdict, on which an alert hangs."""


def run_rollout(
    config: RolloutConfig,
    folder: Path,
    console: Console,
    *,
    metrics_port: int | None = None,
    metrics_host: str = "127.0.0.1",
    linger_s: float = LINGER_S,
) -> int:
    """The exit status. KeyboardInterrupt is raised again once it is said what stays.

    With a port the metrics stay for `linger_s` after the end.
    """
    with _alone(folder), Display(config, console) as display:
        shows: list[Show] = [display.show]
        if metrics_port is not None:
            shows.append(_exporter(config, metrics_host, metrics_port))

        def show(*look: object) -> None:
            for each in shows:
                each(*look)  # type: ignore[arg-type]

        async def go() -> RolloutState:
            marks = _marks(folder)
            controller = Controller(
                config, store_of(config), sources_of(config, marks), folder, CLOCK, show
            )
            try:
                return await controller.run(datetime.now(UTC).isoformat(timespec="seconds"))
            finally:
                await controller.close()

        try:
            state = asyncio.run(go())
        except BaseException as error:
            _say_what_stays(config, folder, console, error)
            raise
    status = _finished(config, folder, state, console)
    if metrics_port is not None:
        with suppress(KeyboardInterrupt, SystemExit):  # all is done: what is left can be cut short
            time.sleep(linger_s)
    return status


def abort_rollout(
    config: RolloutConfig, folder: Path, console: Console, *, keep_split: bool
) -> int:
    """The exit status."""

    async def go() -> RolloutState:
        controller = Controller(config, store_of(config), (), folder, CLOCK)
        try:
            return await controller.abort(keep_split=keep_split)
        finally:
            await controller.close()

    with _alone(folder):
        state = asyncio.run(go())
    return _finished(config, folder, state, console)


def store_of(config: RolloutConfig) -> SplitStore:
    """The way to the split."""
    target = config.target
    if isinstance(target, RayServiceTarget):
        return RayServiceApi(target, config.model)
    return ServeApi(target.url, target.application, config.model, ray_token())


def sources_of(config: RolloutConfig, marks: dict[str, int]) -> list[Evidence]:
    """The sources of evidence, from where each was read to. Raises ConfigError."""
    found: list[Evidence] = []
    arms = config.baseline, config.candidate
    for i, source in enumerate(config.evidence):
        if isinstance(source, ProbesConfig):
            # another seed in each run: after a restart the same prompts would be asked again
            seed = config.seed + time.time_ns()
            found.append(ProbeEvidence(source, config.model, *arms, CLOCK, seed))
        elif isinstance(source, MetricsConfig):
            found.append(MetricsEvidence(source, *arms, CLOCK))
        else:
            found.append(CampaignEvidence(source, *arms, marks.get(str(i), 0)))
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder, for this process alone. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = RecordLock(folder / ".lock")
        is_mine = lock.acquire(str(os.getpid()).encode())
    except OSError as error:
        raise ConfigError(f"cannot use {folder}: {error.strerror}") from None
    if not is_mine:
        raise ConfigError(f"another process runs the rollout in {folder}: wait for it, or end it")
    try:
        yield
    finally:
        lock.release()


def _marks(folder: Path) -> dict[str, int]:
    state = read_state(folder)
    return {} if state is None else state.marks


def _exporter(config: RolloutConfig, host: str, port: int) -> Show:
    from serve_app.rollouts.exporter import Exporter

    exporter = Exporter(config)
    try:
        exporter.serve(port, host)
    except OSError as error:
        raise ConfigError(
            f"--metrics-host {host} --metrics-port {port}: {error.strerror}"
        ) from None
    return exporter.show


def _say_what_stays(
    config: RolloutConfig, folder: Path, console: Console, error: BaseException
) -> None:
    from serve_app.rollouts.report import write_report

    state = read_state(folder)
    if state is None:
        return
    with suppress(ConfigError):  # what went wrong first is told, not this
        write_report(config, state, folder)
    is_stopped = isinstance(error, KeyboardInterrupt | SystemExit)
    stays = told(state.current_bp)
    if state.pending is not None:
        stays += f", or is already {told(state.pending.shares_bp)}"
    lines = [
        f"{'Stopped' if is_stopped else 'Failed'}. The split stays: {stays}",
        "The same command goes on from here; --abort puts the split back to "
        f"{told(state.original_bp)}.",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _finished(config: RolloutConfig, folder: Path, state: RolloutState, console: Console) -> int:
    # matplotlib takes a second to import, and is not needed before
    from serve_app.rollouts.report import write_report

    written = write_report(config, state, folder)
    for line in (
        f"{headline(config, state)}.",
        f"Split: {told(state.current_bp)}",
        f"Report: {written[0]}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    assert state.exit_status is not None
    return state.exit_status
