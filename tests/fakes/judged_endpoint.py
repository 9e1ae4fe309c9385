"""An endpoint to be judged, behind httpx: a tiny language model of bytes, damaged by variant.

Token ids are UTF-8 bytes; a chat is `\x01question\x02answer\x03`. Log-probabilities are exact
softmaxes of seeded logits plus `damage[model]` times noise of the model's own, so that KL and
perplexity are known by construction. Answers are right but for items that `wrong` picks.
"""

import json
from collections.abc import Callable, Mapping

import httpx
import numpy as np
from openai import AsyncOpenAI

from serve_app.evaluate.endpoint import Endpoint

VOCAB = 256
ALIAS = "m"


class JudgedEndpoint:
    """Give it to `httpx.MockTransport`. `requests` counts what was asked, by path and model."""

    def __init__(
        self,
        damage: Mapping[str, float],
        answers: Mapping[str, str],
        wrong: Callable[[str, str], bool] = lambda model, question: False,
        top_k_limit: int = 20,
    ) -> None:
        self.damage = dict(damage)
        self.answers = dict(answers)
        self.wrong = wrong
        self.requests: list[tuple[str, str]] = []
        self.no_logprobs: set[str] = set()
        self.facts = {name: {"engine": "fake 1"} for name in damage}
        self.fails: Callable[[int], httpx.Response | Exception | None] = lambda n: None
        self._logits = np.random.default_rng(0).normal(0, 2, (VOCAB, VOCAB))
        self._noise = {
            name: np.random.default_rng(i + 1).normal(0, 1, (VOCAB, VOCAB))
            for i, name in enumerate(damage)
        }

    def log_softmax(self, name: str) -> np.ndarray:
        """By previous token: natural log-probabilities of the next."""
        logits = self._logits + self.damage[name] * self._noise[name]
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/v1/models":
            return _json({"object": "list", "data": [_card(f"{ALIAS}@{n}") for n in self.damage]})
        if path == "/status":
            return _json({"variants": {n: {"facts": facts} for n, facts in self.facts.items()}})
        body = json.loads(request.content)
        name = body["model"].partition("@")[2]
        self.requests.append((path, name))
        failure = self.fails(len(self.requests))
        if isinstance(failure, Exception):
            raise failure
        if failure is not None:
            return failure
        return {
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
            "/v1/completions": self._complete,
            "/v1/chat/completions": self._chat,
        }[path](name, body)

    def _tokenize(self, name: str, body: dict) -> httpx.Response:
        if "messages" in body:
            text = f"\x01{body['messages'][0]['content']}\x02"
            if len(body["messages"]) > 1:
                text += f"{body['messages'][1]['content']}\x03"
        else:
            text = body["prompt"]
        return _json({"tokens": list(text.encode()), "count": len(text.encode())})

    def _detokenize(self, name: str, body: dict) -> httpx.Response:
        return _json({"prompt": bytes(body["tokens"]).decode(errors="replace")})

    def _complete(self, name: str, body: dict) -> httpx.Response:
        if name in self.no_logprobs:
            return _json({"error": {"message": "no prompt logprobs here"}}, 400)
        table = self.log_softmax(name)
        choices = []
        for index, ids in enumerate(body["prompt"]):
            rows = [table[previous] for previous in ids[:-1]]
            own = [None, *(float(row[token]) for row, token in zip(rows, ids[1:], strict=True))]
            tops: list = [None]
            for row, token in zip(rows, ids[1:], strict=True):
                best = {int(token), *np.argsort(row)[-body["logprobs"] :].tolist()}
                tops.append({f"token_id:{each}": float(row[each]) for each in best})
            names = [f"token_id:{token}" for token in ids]
            logprobs = {
                "tokens": [*names, "token_id:0"],
                "token_logprobs": [*own, -0.5],
                "top_logprobs": [*tops, {"token_id:0": -0.5}],
                "text_offset": [0] * (len(ids) + 1),
            }
            choices.append(
                {"index": index, "text": "", "finish_reason": "length", "logprobs": logprobs}
            )
        return _json({"id": "1", "object": "text_completion", "created": 0, "choices": choices})

    def _chat(self, name: str, body: dict) -> httpx.Response:
        question = body["messages"][0]["content"]
        answer = self.answers.get(question, "I do not know.")
        if self.wrong(name, question):
            answer = f"not {answer}"
        message = {"role": "assistant", "content": f" {answer}\n"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return _json({"id": "1", "object": "chat.completion", "created": 0, "choices": [choice]})

    def endpoint(self) -> Endpoint:
        """A client of it, without retries."""
        http = httpx.AsyncClient(transport=httpx.MockTransport(self))
        return Endpoint(
            AsyncOpenAI(base_url="http://x/v1", api_key="-", http_client=http, max_retries=0)
        )


def _card(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "us"}


def _json(body: object, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)
