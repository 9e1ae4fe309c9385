"""For Locust's own UI: `locust -f loadtests/locustfile.py --host http://127.0.0.1:8000`.

Users chat, wait, and chat again: good for a look around and for clicking load up and down. A
user that waits for its answer sends less when the server is slow, so percentiles from here are
not for decisions; `quantile load run` measures with planned arrivals.
"""

import os
import random
import time
from typing import Any

import msgspec
from locust import User, between, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopTest

from loadtests.campaign import CorpusPrompts, Workload
from loadtests.drive.client import HttpTarget
from loadtests.drive.outcome import failure
from loadtests.drive.pacer import CHAT_PATH, fire_request
from loadtests.plan.prompts import chat_body, load_prompts
from loadtests.drive.sse import read_stream
from serve_app.domain.units import NS_PER_MS

REQUEST_TIMEOUT_S = 120.0


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_arguments(parser: LocustArgumentParser) -> None:
    """Options beside Locust's own; its UI shows them too."""
    parser.add_argument("--model", default="", help="model id; empty: every id of /v1/models")
    parser.add_argument("--max-tokens", type=int, default=32, help="output tokens per request")


class ChatUser(User):  # type: ignore[misc]
    """One person: asks a question of the corpus, reads the streamed answer, thinks, asks again."""

    wait_time = between(0.5, 1.5)

    def __init__(self, environment: Environment, **kwargs: Any) -> None:
        super().__init__(environment, **kwargs)
        key = os.environ.get("QUANTILE_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._target = HttpTarget(environment.host or self.host, headers)
        self._prompts = load_prompts(CorpusPrompts())
        options = environment.parsed_options
        self._max_tokens = options.max_tokens
        self._models = [options.model] if options.model else self._served_models()

    @task  # type: ignore[untyped-decorator]
    def chat(self) -> None:
        """One streamed chat request; one Locust event, named after the model id."""
        model = random.choice(self._models)
        limits = (self._max_tokens, self._max_tokens)
        workload = Workload(prompts=CorpusPrompts(), max_tokens=limits, forced_length=False)
        body = chat_body(workload, model, random.choice(self._prompts), self._max_tokens)
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
        started_s = time.monotonic()
        exchange = self._target.exchange(self._target.request("GET", "/v1/models"), 10.0)
        if exchange.status != 200:
            elapsed_ms = (time.monotonic() - started_s) * 1000
            fire_request(self.environment, "/v1/models", elapsed_ms, None, exchange.error)
            raise StopTest(f"/v1/models: {exchange.detail or exchange.status}")
        return [card["id"] for card in msgspec.json.decode(exchange.body)["data"]]
