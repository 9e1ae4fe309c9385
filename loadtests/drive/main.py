"""The load process: `python -m loadtests.drive.main DIR` runs the campaign of `DIR/run.json`.

One process: Locust's local runner. More: a master here, and workers that it starts or waits for.
Progress goes to stdout, one JSON line each 0.2 s.
"""

import argparse
import signal
import sys
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

import gevent
import msgspec
from locust.dispatch import UsersDispatcher
from locust.env import Environment
from locust.exception import RPCError
from locust.log import setup_logging
from locust.runners import WorkerNode

from loadtests.drive import web
from loadtests.drive.conductor import Conductor
from loadtests.drive.crew import Crew
from loadtests.drive.keeper import Keeper
from loadtests.drive.lifeline import end_with_parent
from loadtests.drive.plans import plan_of
from loadtests.drive.player import PacerUser, Player
from loadtests.drive.shard import check_cap
from loadtests.drive.tally import Tally
from loadtests.drive.worker import address
from loadtests.drive.workers import LocalWorkers
from loadtests.records.manifest import Ending, EndReason, RunFiles
from serve_app.domain.errors import ConfigError

PROGRESS_S = 0.2
LOCAL = "127.0.0.1"
EXIT_STATUS = {EndReason.COMPLETE: 0, EndReason.FAILED: 1}
STOPPED = 3
"""Exit status of a run that ended before its plan did."""


class OneEach(UsersDispatcher):  # type: ignore[misc]
    """Locust moves users about when a worker comes or goes; a pacer stays where its plan is."""

    def add_worker(self, worker_node: WorkerNode) -> None:
        """Who comes late gets no user."""

    def remove_worker(self, worker_node: WorkerNode) -> None:
        """Nobody takes the place of who is lost: the run ends."""


def main(arguments: list[str] | None = None) -> int:
    """Run it. 0 complete, 1 failed, 3 ended early; `ending.json` says how."""
    options = _parser().parse_args(arguments)
    end_with_parent(signal.SIGTERM)
    setup_logging("WARNING")
    files = RunFiles(options.folder)
    with ExitStack() as clean_up:
        try:
            ending = _run(files, options, clean_up)
        except Exception as error:
            if not isinstance(error, ConfigError):  # whose text says it all
                traceback.print_exc()
            ending = Ending(reason=EndReason.FAILED, detail=f"{type(error).__name__}: {error}")
        files.write_ending(ending)
    return EXIT_STATUS.get(ending.reason, STOPPED)


def _run(files: RunFiles, options: argparse.Namespace, clean_up: ExitStack) -> Ending:
    manifest = files.read_manifest()
    campaign = manifest.parsed()
    n_workers = options.processes + options.remote_workers
    if n_workers < 1:
        raise ConfigError("need one load process or more, have --processes 0: raise it")
    check_cap(campaign.in_flight_cap, n_workers)
    source, body = plan_of(manifest, campaign)
    host = campaign.target.base_url
    environment = Environment(user_classes=[PacerUser], host=host, dispatcher_class=OneEach)
    player: Player | None = None
    if n_workers == 1 and not options.remote_workers:
        environment.create_local_runner()
        clean_up.callback(environment.runner.quit)
        workers = LocalWorkers(0, "")
        player = PacerUser.player = Player(environment)
    else:
        listen_host, port = address(options.listen or f"{LOCAL}:0")
        try:
            runner = environment.create_master_runner(listen_host, port)
        except (RPCError, SystemExit) as error:  # by the wording of zmq, Locust ends the process
            why = f"--listen {listen_host}:{port}: cannot listen there, name another port"
            raise ConfigError(f"{why}: {error}") from error
        local = LOCAL if listen_host in ("*", "0.0.0.0") else listen_host  # noqa: S104
        workers = LocalWorkers(options.processes, f"{local}:{runner.server.port}")
        clean_up.callback(workers.leave)
        clean_up.callback(runner.quit)
    crew = Crew(environment.runner, n_workers, workers)
    _end_on_signals(crew)
    if options.web_port is not None:
        web.show(environment, options.web_port, lambda why: crew.end(EndReason.INTERRUPTED, why))
    tally = Tally(n_workers, source.n_cells)
    conductor = Conductor(campaign, source, body, crew, Keeper(files), tally, options.epoch_ns)
    clean_up.callback(gevent.spawn(_show_progress, tally, options.epoch_ns, crew).kill)
    if player is not None:
        player.say_hello()
    return conductor.run(lambda: environment.runner.start(n_workers, spawn_rate=n_workers))


def _end_on_signals(crew: Crew) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        gevent.signal_handler(number, crew.end, EndReason.INTERRUPTED, number.name)


def _show_progress(tally: Tally, epoch_ns: int, crew: Crew) -> None:
    """Write lines of progress until killed."""
    while True:
        line = msgspec.json.encode(tally.progress(time.monotonic_ns() - epoch_ns)) + b"\n"
        try:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            crew.end(EndReason.INTERRUPTED, "nobody reads the progress any more")
            return
        gevent.sleep(PROGRESS_S)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epoch-ns", type=int, default=time.monotonic_ns())
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--listen", metavar="HOST:PORT")
    parser.add_argument("--remote-workers", type=int, default=0)
    parser.add_argument("--web-port", type=int)
    return parser


if __name__ == "__main__":
    sys.exit(main())
