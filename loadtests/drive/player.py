"""The worker's side of a run: plays the shards that the conductor sends, and reports."""

import os
import socket
import time
import traceback
from contextlib import suppress

import gevent
import msgspec
from gevent.event import Event
from gevent.queue import Queue
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser
from locust.rpc import Message
from locust.runners import Runner

from loadtests.drive import messages as say
from loadtests.drive.client import HttpTarget, auth_headers
from loadtests.drive.outbox import Outbox
from loadtests.drive.pacer import CellPacer
from loadtests.records.record import ErrorClass, RequestRecord
from serve_app.domain.errors import ConfigError
from serve_app.domain.units import NS_PER_MS

REPORT_S = 0.25


class Player:
    """One load process: does what the conductor says, from the start until it lets us go.

    `api_key_env` names the variable of this process with the API key, for campaigns that need one.
    """

    def __init__(self, environment: Environment, api_key_env: str | None = None) -> None:
        self.left = Event()
        """Set once the conductor has let us go."""
        self._environment = environment
        self._api_key_env = api_key_env
        self._runner: Runner = environment.runner
        self._inbox: Queue = Queue()
        self._outbox = Outbox(self._show)
        self._decoder = msgspec.msgpack.Decoder(say.ToWorker)
        self._target: HttpTarget | None = None
        self._pacer: CellPacer | None = None
        self._stage = ""
        self._playing: gevent.Greenlet | None = None
        self._runner.register_message(say.TO_WORKER, self._hear)
        gevent.spawn(self._obey)

    def say_hello(self) -> None:
        """Tell the conductor that this worker is there."""
        self._tell(say.Hello(socket.gethostname(), os.getpid()))

    def _obey(self) -> None:
        try:
            for message in self._inbox:
                self._do(message)
        except Exception as error:
            self._halt()
            self._in_trouble(error)
        else:
            self._halt()

    def _hear(self, environment: Environment, msg: Message, **_: object) -> None:
        message = self._decoder.decode(msg.data)
        if isinstance(message, say.Ping):  # at once: its round trip is what the clock is set by
            self._tell(say.Pong(time.monotonic_ns()))
            return
        self._inbox.put(message)
        if isinstance(message, say.Leave):
            self._inbox.put(StopIteration)
            self.left.set()

    def _do(self, message: say.ToWorker) -> None:
        match message:
            case say.Join(base_url, needs_key):
                self._target = HttpTarget(base_url, self._auth() if needs_key else {})
            case say.Prepare(shard):
                assert self._target is not None, "Join comes before Prepare"
                self._pacer = CellPacer(shard, self._target, self._outbox.add)
                self._stage = shard.cell.stage
                self._tell(say.Ready())
            case say.Start():
                self._playing = gevent.spawn(self._play_cell, message)
            case say.Stop():
                self._halt()
                self._tell(say.Stopped())

    def _auth(self) -> dict[str, str]:
        if self._api_key_env is None:
            raise ConfigError(
                "need an API key, for the campaign has target.api_key_env, have no --api-key-env: "
                "start this worker with --api-key-env and the variable that holds the key there"
            )
        return auth_headers(self._api_key_env)

    def _play_cell(self, start: say.Start) -> None:
        assert self._pacer is not None, "Prepare comes before Start"
        reporting = gevent.spawn(self._keep_reporting)
        try:
            run = self._pacer.run(start.start_ns, start.clock_error_ns)
        except Exception as error:
            self._report()
            self._in_trouble(error)
        else:
            self._report()
            self._tell(say.CellOver(run))
        finally:
            reporting.kill()

    def _halt(self) -> None:
        """End the cell that is playing, if one is, and report what it left."""
        if self._playing is not None:
            self._playing.kill()
            self._playing = None
            self._report()

    def _keep_reporting(self) -> None:
        while True:
            gevent.sleep(REPORT_S)
            self._report()

    def _report(self) -> None:
        in_flight = self._pacer.in_flight if self._pacer is not None else 0
        self._tell(self._outbox.report(in_flight))

    def _in_trouble(self, error: Exception) -> None:
        if not isinstance(error, ConfigError):  # whose text says it all
            with suppress(OSError):  # the log may be on a disk that is full
                traceback.print_exception(error)
        self._tell(say.Trouble(f"{type(error).__name__}: {error}"))

    def _tell(self, message: say.ToMaster) -> None:
        self._runner.send_message(say.TO_MASTER, msgspec.msgpack.encode(message))

    def _show(self, record: RequestRecord) -> None:
        end_ns = record.t_last_ns or record.t_end_ns or record.t_sched_ns
        fire_request(
            self._environment,
            f"{self._stage} {record.variant}",
            (end_ns - record.t_sched_ns) / NS_PER_MS,
            record.output_tokens,
            record.error,
        )


class PacerUser(User):  # type: ignore[misc]
    """What Locust's page counts as users: it sends nothing. The load is the player's, because it
    is Locust that says which of its workers get a user, and one too many may be among them.
    """

    player: Player

    @task  # type: ignore[untyped-decorator]
    def wait(self) -> None:
        """Be there for as long as the player."""
        self.player.left.wait()
        raise StopUser


def fire_request(
    environment: Environment,
    name: str,
    response_time_ms: float,
    n_tokens: int | None,
    error: ErrorClass | None,
) -> None:
    """Tell Locust of one request, once: its statistics and UI show it, our report does not."""
    environment.events.request.fire(
        request_type="POST",
        name=name,
        response_time=response_time_ms,
        response_length=n_tokens or 0,
        exception=None if error is None else RuntimeError(str(error)),
        context={},
    )
