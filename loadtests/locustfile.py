"""For Locust's own UI: `locust -f loadtests/locustfile.py --host http://127.0.0.1:8000`.

Users chat, wait, and chat again (a closed loop): good for a look around and for clicking load up
and down. A user that waits for its answer sends less when the server is slow, so percentiles from
here are not for decisions; `quantile loadtest` measures with planned arrivals.
`--stages 5x30,20x60` makes a headless run of 5 users for 30 s, then 20 for 60 s.
"""

import random
from argparse import ArgumentTypeError
from dataclasses import dataclass
from typing import Any

import msgspec
from locust import LoadTestShape, User, between, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import WorkerRunner

from loadtests.campaign import CorpusPrompts, Workload
from loadtests.drive.client import HttpTarget, auth_headers
from loadtests.drive.outcome import failure
from loadtests.drive.pacer import CHAT_PATH
from loadtests.drive.player import fire_request
from loadtests.drive.sse import read_stream
from loadtests.plan.prompts import Message, chat_body, load_prompts
from serve_app.domain.errors import ConfigError
from serve_app.domain.units import NS_PER_MS

REQUEST_TIMEOUT_S = 120.0
LIST_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Step:
    """So many users for so long."""

    users: int
    seconds: float


def steps(text: str) -> tuple[Step, ...]:
    """`5x30,20x60`. Raises ArgumentTypeError."""
    try:
        pairs = [step.split("x") for step in text.split(",")]
        return tuple(Step(int(users), float(seconds)) for users, seconds in pairs)
    except ValueError as error:
        raise ArgumentTypeError(f"need USERSxSECONDS,..., have {text!r}") from error


def _stages(text: str) -> str:
    """`text`, if it is empty or `steps` reads it: Locust sends options to its workers as text."""
    if text:
        steps(text)
    return text


class Stages(LoadTestShape):  # type: ignore[misc]
    """One step after the other, then the end."""

    abstract = True  # made by `take_stages`, where it is asked for

    def __init__(self, stages: tuple[Step, ...]) -> None:
        super().__init__()
        self._stages = stages

    def tick(self) -> tuple[int, float] | None:
        """Users now, and how many may start per second."""
        left_s = self.get_run_time()
        for step in self._stages:
            if left_s < step.seconds:
                return step.users, float(step.users)
            left_s -= step.seconds
        return None


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_arguments(parser: LocustArgumentParser) -> None:
    """Options beside Locust's own; its UI shows them too."""
    parser.add_argument("--model", default="", help="model id; empty: every id of /v1/models")
    parser.add_argument("--max-tokens", type=int, default=32, help="output tokens per request")
    parser.add_argument(
        "--api-key-env", default="", help="environment variable of the API key; empty: none"
    )
    parser.add_argument(
        "--stages",
        type=_stages,
        default="",
        help="USERSxSECONDS,...: this many users, for this long",
    )


@events.init.add_listener  # type: ignore[untyped-decorator]
def take_stages(environment: Environment, **_: Any) -> None:
    """Have Locust follow `--stages`, if given."""
    text = environment.parsed_options.stages
    if text and not isinstance(environment.runner, WorkerRunner):
        environment.shape_class = Stages(steps(text))
        environment.shape_class.runner = environment.runner


class ChatUser(User):  # type: ignore[misc]
    """One person: asks a question of the corpus, reads the streamed answer, thinks, asks again."""

    wait_time = between(0.5, 1.5)

    def __init__(self, environment: Environment) -> None:
        """Raises StopTest, with what to change: from here, as for an HttpUser, it ends the test."""
        super().__init__(environment)
        options = environment.parsed_options
        try:
            headers = auth_headers(options.api_key_env or None)
            self._target = HttpTarget(environment.host or self.host or "", headers)
        except ConfigError as error:
            raise StopTest(f"--host or --api-key-env: {error}") from error
        self._max_tokens = options.max_tokens
        self._workload = Workload(
            prompts=CorpusPrompts(),
            max_tokens=(self._max_tokens, self._max_tokens),
            forced_length=False,
        )
        self._questions = load_prompts(CorpusPrompts())
        self._models = [options.model] if options.model else self._served_models()

    @task  # type: ignore[untyped-decorator]
    def chat(self) -> None:
        """One streamed chat request; one Locust event, named after the model id."""
        model = random.choice(self._models)
        messages = [Message(role="user", content=random.choice(self._questions))]
        body = chat_body(self._workload, model, messages, self._max_tokens)
        request = self._target.request("POST", CHAT_PATH, body)
        exchange = self._target.exchange(request, REQUEST_TIMEOUT_S)
        reading = read_stream(exchange.pieces)
        _, _, pin = model.partition("@")
        error, _ = failure(exchange, reading, pin or None)
        elapsed_ms = (exchange.t_end_ns - exchange.t_send_ns) / NS_PER_MS
        fire_request(self.environment, model, elapsed_ms, reading.output_tokens, error)

    def on_stop(self) -> None:
        """Close the user's connection."""
        self._target.close()

    def _served_models(self) -> list[str]:
        exchange = self._target.exchange(self._target.request("GET", "/v1/models"), LIST_TIMEOUT_S)
        if exchange.status != 200:
            raise StopTest(f"/v1/models: {exchange.detail or exchange.status}")
        return [card["id"] for card in msgspec.json.decode(exchange.body)["data"]]
