"""A load process that takes its orders from a master: `python -m loadtests.drive.worker`.

It needs nothing but the address, and may be there before its master: requests come over the wire.
An API key, if the campaign needs one, is in the variable that `--api-key-env` names here: a master
is whoever answers there, and reads no other. It ends with the run, with the process that started
it, and when it no longer hears its master.
"""

import argparse
import signal
import sys
import time

import gevent
from gevent.event import AsyncResult
from locust.env import Environment
from locust.log import setup_logging
from locust.runners import WorkerRunner

from loadtests.drive.lifeline import end_with_parent
from loadtests.drive.player import PacerUser, Player
from serve_app.domain.errors import ConfigError

SILENCE_S = 15.0
"""The master's heartbeats come every second; after so long without one it is gone."""
LAST_REPORT_S = 3.0


class Watched:
    """Ends the worker when its master is silent, or when it is told to end."""

    def __init__(self, environment: Environment, player: Player, silence_s: float) -> None:
        self._silence_s = silence_s
        self._environment = environment
        self._player = player
        self._heard_s = time.monotonic()
        environment.events.heartbeat_received.add_listener(self._hear)

    def _hear(self, **_: object) -> None:
        self._heard_s = time.monotonic()

    def wait(self) -> int:
        """Until the run is over: 0. Until the master is silent: 1."""
        while not self._player.left.wait(timeout=1.0):
            if time.monotonic() - self._heard_s > self._silence_s:
                why = f"no word from the master for {self._silence_s:g} s: leaving"
                print(why, file=sys.stderr)
                return 1
        runner: WorkerRunner = self._environment.runner
        runner.greenlet.join(timeout=LAST_REPORT_S)  # Locust sends its last statistics, and quits
        self.quit()
        return 0

    def quit(self) -> None:
        """Tell the master that this worker is leaving."""
        self._environment.events.quitting.fire(environment=self._environment)


def main(arguments: list[str] | None = None) -> int:
    """Serve one run. 0 when it is over, 1 when the master is gone, 3 when told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--master", required=True, metavar="HOST:PORT")
    parser.add_argument("--api-key-env", metavar="NAME", help="variable that holds the API key")
    parser.add_argument("--silence-s", type=float, default=SILENCE_S)
    options = parser.parse_args(arguments)
    try:
        host, port = address(options.master)
    except ConfigError as error:
        parser.error(f"--master: {error}")
    end_with_parent(signal.SIGTERM)
    setup_logging("WARNING")
    environment = Environment(user_classes=[PacerUser])
    told_to_end = AsyncResult()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, told_to_end.set, number)
    serving = gevent.spawn(_serve, environment, host, port, options)
    gevent.wait([serving, told_to_end], count=1)
    if not serving.ready():
        if environment.runner is not None:
            environment.events.quitting.fire(environment=environment)
        return 3
    return int(serving.get())


def _serve(environment: Environment, host: str, port: int, options: argparse.Namespace) -> int:
    environment.create_worker_runner(host, port)
    player = PacerUser.player = Player(environment, options.api_key_env)
    watched = Watched(environment, player, options.silence_s)
    player.say_hello()
    return watched.wait()


def address(text: str) -> tuple[str, int]:
    """HOST:PORT. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"need HOST:PORT, have {text!r}")
    return host, int(port)


if __name__ == "__main__":
    sys.exit(main())
