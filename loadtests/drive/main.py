"""The load process: `python -m loadtests.drive.main DIR` runs the campaign of `DIR/run.json`.

One process: Locust's local runner. More: a master here, and workers that it starts or waits for.
Progress goes to stdout, one JSON line each 0.2 s.
"""

import argparse
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import ExitStack, suppress
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
GATHER_S = 300.0
"""How long the workers may take until they are there."""
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
                with suppress(OSError):  # the log may be on the disk that is full
                    traceback.print_exc()
            ending = Ending(reason=EndReason.FAILED, detail=f"{type(error).__name__}: {error}")
        files.write_ending(ending)
    return EXIT_STATUS.get(ending.reason, STOPPED)


def _run(files: RunFiles, options: argparse.Namespace, clean_up: ExitStack) -> Ending:
    n_workers = _count_workers(options)
    manifest = files.read_manifest()
    campaign = manifest.parsed()
    check_cap(campaign.in_flight_cap, n_workers)
    source, body = plan_of(manifest, campaign)
    host, api_key_env = campaign.target.base_url, campaign.target.api_key_env
    environment = Environment(user_classes=[PacerUser], host=host, dispatcher_class=OneEach)
    player: Player | None = None
    if options.listen is None and n_workers == 1:
        environment.create_local_runner()
        clean_up.callback(environment.runner.quit)
        master = ""
        workers = LocalWorkers(0, master)
        player = PacerUser.player = Player(environment, api_key_env)
    else:
        listen_host, port = address(options.listen or f"{LOCAL}:0")
        try:
            runner = environment.create_master_runner(listen_host, port)
        except (RPCError, SystemExit) as error:  # by the wording of zmq, Locust ends the process
            why = f"--listen {listen_host}:{port}: cannot listen there, name another port"
            raise ConfigError(f"{why}: {error}") from error
        is_everywhere = listen_host in ("*", "0.0.0.0")  # noqa: S104
        local = LOCAL if is_everywhere else listen_host
        workers = LocalWorkers(options.processes, f"{local}:{runner.server.port}", api_key_env)
        named = socket.gethostname() if is_everywhere else listen_host
        master = f"{named}:{runner.server.port}"
        clean_up.callback(workers.leave)
        clean_up.callback(runner.quit)
    # at once: Locust throws away what workers say before somebody listens
    crew = Crew(environment.runner, n_workers, workers, master)
    workers.start()
    _end_on_signals(crew)
    if options.web_port is not None:
        web.show(environment, options.web_port, lambda why: crew.end(EndReason.INTERRUPTED, why))
    tally = Tally(n_workers, source.n_cells)
    times = options.epoch_ns, options.gather_s
    conductor = Conductor(campaign, source, body, crew, Keeper(files), tally, *times)
    out = sys.stdout.fileno()
    clean_up.callback(os.set_blocking, out, os.get_blocking(out))
    os.set_blocking(out, False)
    clean_up.callback(gevent.spawn(_show_progress, out, tally, options.epoch_ns, crew).kill)
    if player is not None:
        player.say_hello()
    return conductor.run(lambda: environment.runner.start(n_workers, spawn_rate=n_workers))


def _end_on_signals(crew: Crew) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        gevent.signal_handler(number, crew.end, EndReason.INTERRUPTED, number.name)


def _count_workers(options: argparse.Namespace) -> int:
    """Load processes here and elsewhere. Raises ConfigError if they could not all come."""
    if options.processes + options.remote_workers < 1:
        raise ConfigError("need one load process or more, have --processes 0: raise it")
    if bool(options.remote_workers) != bool(options.listen):
        raise ConfigError(
            "need --remote-workers and --listen together or neither, have "
            f"--remote-workers {options.remote_workers} and --listen {options.listen}: "
            "name both, or leave both out"
        )
    return options.processes + options.remote_workers  # type: ignore[no-any-return]


def _show_progress(out: int, tally: Tally, epoch_ns: int, crew: Crew) -> None:
    """Write lines of progress to the file descriptor `out`, which does not block, until killed.

    Who stops reading misses lines: the load does not wait. A pipe takes a line of less than 4 KiB
    whole or not at all.
    """
    while True:
        line = msgspec.json.encode(tally.progress(time.monotonic_ns() - epoch_ns)) + b"\n"
        try:
            os.write(out, line)
        except BlockingIOError:
            pass
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
    parser.add_argument("--gather-s", type=float, default=GATHER_S)
    parser.add_argument("--web-port", type=int)
    return parser


if __name__ == "__main__":
    sys.exit(main())
