"""What an evaluation asks of an OpenAI endpoint: answers, token ids, prompt log-probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError, AsyncOpenAI

from serve_app.domain.errors import ConfigError, EngineError

TOKEN_ID = "token_id:"  # noqa: S105 a prefix, no secret
"""How vLLM names tokens by id in `top_logprobs` (`return_tokens_as_token_ids`)."""
LEAST_LOGPROB = -9999.0
"""In place of minus infinity, as vLLM writes it."""


class NoPromptLogprobsError(EngineError):
    """The endpoint gives no log-probabilities of a prompt, or not of the tokens that we sent."""


class NoTokenizerError(EngineError):
    """The endpoint has no route that tokenizes: asking again changes nothing."""


class RequestFailedError(EngineError):
    """A request got no answer, after the client's own retries. `is_gone`: nobody listened."""

    def __init__(self, message: str, is_gone: bool = False) -> None:
        super().__init__(message, is_gone)
        self.is_gone = is_gone

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class PromptLogprobs:
    """Of a prompt of n tokens: n - 1 entries, for the tokens after the first.

    `top` has the k most likely tokens by name, and the prompt's own; None where not asked for.
    """

    own: tuple[float, ...]
    top: tuple[Mapping[str, float], ...] | None


class Endpoint:
    """An endpoint whose `base_url` ends in `/v1`. Close it, or use `async with` of its client.

    Methods raise RequestFailedError; those that tokenize NoTokenizerError too.
    """

    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client
        self._root = str(client.base_url).rstrip("/").removesuffix("/v1")

    async def models(self) -> dict[str, dict[str, Any]]:
        """Every card of `/v1/models`, by its id."""
        try:
            return {card.id: card.to_dict() async for card in self._client.models.list()}
        except APIError as error:
            raise RequestFailedError(
                f"{self._client.base_url} does not list its models: {error}: is it served? "
                "(`make serve`, or --base-url)"
            ) from error

    async def status(self) -> dict[str, Any]:
        """`GET /status` of our router; empty where the endpoint is another's."""
        try:
            found = await self._client.get(f"{self._root}/status", cast_to=object)
        except APIError:
            return {}
        return cast("dict[str, Any]", found) if isinstance(found, dict) else {}

    async def answer(self, model: str, question: str, max_tokens: int) -> str:
        """The greedy answer, as it comes."""
        try:
            reply = await self._client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                temperature=0.0,
                max_tokens=max_tokens,
            )
        except APIError as error:
            raise _failed(error) from error
        return reply.choices[0].message.content or ""

    async def tokenize(self, model: str, text: str) -> list[int]:
        """Token ids of plain text, no special tokens added."""
        return await self._tokens({"model": model, "prompt": text, "add_special_tokens": False})

    async def tokenize_chat(
        self, model: str, question: str, answer: str | None = None
    ) -> list[int]:
        """Token ids of a chat as its template writes it; no answer: up to where it begins."""
        messages = [{"role": "user", "content": question}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        body = {"messages": messages, "add_generation_prompt": answer is None}
        return await self._tokens({"model": model, **body})

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        """The text of token ids."""
        found = await self._post("/detokenize", {"model": model, "tokens": list(ids)})
        return str(found["prompt"])

    async def prompt_logprobs(
        self, model: str, prompts: Sequence[Sequence[int]], top_k: int | None
    ) -> list[PromptLogprobs]:
        """Of several prompts of token ids, in one request.

        By `echo`, as lm-evaluation-harness asks; the one token that is generated is dropped.
        Raises NoPromptLogprobsError where the endpoint cannot.
        """
        try:
            reply = await self._client.completions.create(
                model=model,
                prompt=[list(ids) for ids in prompts],
                max_tokens=1,
                temperature=0.0,
                echo=True,
                logprobs=top_k or 1,
                extra_body={"return_tokens_as_token_ids": True},
            )
        except APIStatusError as error:
            if error.status_code in (400, 404, 422, 501):
                raise NoPromptLogprobsError(
                    f"{model} refuses prompt log-probabilities: {error.message}"
                ) from error
            raise _failed(error) from error
        except APIError as error:
            raise _failed(error) from error
        choices = sorted(reply.choices, key=lambda choice: choice.index)
        if len(choices) != len(prompts):
            raise NoPromptLogprobsError(f"{len(prompts)} prompts, {len(choices)} answers")
        return [
            read_echo(choice.to_dict().get("logprobs"), ids, with_top=top_k is not None)
            for choice, ids in zip(choices, prompts, strict=True)
        ]

    async def _tokens(self, body: dict[str, Any]) -> list[int]:
        return [int(token) for token in (await self._post("/tokenize", body))["tokens"]]

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            found = await self._client.post(f"{self._root}{path}", cast_to=object, body=body)
        except APIStatusError as error:
            if error.status_code in (404, 405, 501):
                raise NoTokenizerError(f"{path}: {error.message}") from error
            raise _failed(error) from error
        except APIError as error:
            raise _failed(error) from error
        if not isinstance(found, dict):
            raise RequestFailedError(f"{path}: need a JSON object, have {str(found)[:80]!r}")
        return cast("dict[str, Any]", found)


def read_echo(logprobs: Any, ids: Sequence[int], *, with_top: bool) -> PromptLogprobs:
    """The `logprobs` object of a completion that echoes its prompt.

    Raises NoPromptLogprobsError where the prompt's tokens have none, or are not `ids`.
    """
    if not isinstance(logprobs, dict) or not logprobs.get("token_logprobs"):
        raise NoPromptLogprobsError("the answer has no log-probabilities of the prompt")
    values, names = logprobs["token_logprobs"][: len(ids)], (logprobs.get("tokens") or [])
    if len(values) < len(ids) or any(value is None for value in values[1:]):
        raise NoPromptLogprobsError(
            f"need log-probabilities of {len(ids)} prompt tokens, have "
            f"{sum(value is not None for value in values)}: the endpoint echoes no prompt, or "
            "counts other tokens"
        )
    named = [name for name in names[: len(ids)] if str(name).startswith(TOKEN_ID)]
    if named and named != [f"{TOKEN_ID}{token}" for token in ids]:
        raise NoPromptLogprobsError("the echoed tokens are not those that were sent")
    top = logprobs.get("top_logprobs") if with_top else None
    return PromptLogprobs(
        own=tuple(max(float(value), LEAST_LOGPROB) for value in values[1:]),
        top=tuple(dict(entry or {}) for entry in top[1 : len(ids)]) if top else None,
    )


def _failed(error: APIError) -> RequestFailedError:
    is_gone = isinstance(error, APIConnectionError) and not isinstance(error, APITimeoutError)
    return RequestFailedError(f"{type(error).__name__}: {error}", is_gone)


def open_endpoint(base_url: str, api_key: str, timeout_s: float) -> Endpoint:
    """Raises ConfigError for what is no URL of an OpenAI endpoint."""
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"--base-url: need http://HOST:PORT/v1, have {base_url!r}")
    root = base_url.rstrip("/").removesuffix("/v1")
    return Endpoint(AsyncOpenAI(base_url=f"{root}/v1", api_key=api_key, timeout=timeout_s))
