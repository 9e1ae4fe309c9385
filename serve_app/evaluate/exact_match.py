"""How many questions a served model answers exactly, asked through its OpenAI endpoint."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openai import APIError, AsyncOpenAI

from serve_app.evaluate.statistics.binomial import wilson_interval
from serve_app.reference.corpus import Fact

MAX_ANSWER_TOKENS = 48


@dataclass(frozen=True)
class ExactMatch:
    """Answers compared with the only right one. Shares are of the `n` questions answered.

    `n_failed` requests got no answer: they count neither as right nor as wrong. `share` is None
    when nothing was answered.
    """

    n: int
    correct: int
    n_failed: int
    by_category: Mapping[str, "ExactMatch"]

    @property
    def share(self) -> float | None:
        """`correct / n`."""
        return self.correct / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the share."""
        return wilson_interval(self.correct, self.n)


async def evaluate_exact_match(
    base_url: str,
    model: str,
    questions: Sequence[Fact],
    *,
    concurrency: int = 8,
    api_key: str = "none",
    timeout_s: float = 60.0,
) -> ExactMatch:
    """Ask every question once, greedily, at most `concurrency` at a time.

    `base_url` ends in `/v1`; `model` may pin a variant (`reference@gptq`). Requests that fail after
    the client's own retries are counted in `n_failed`, never raised.
    """
    async with AsyncOpenAI(base_url=base_url, api_key=api_key, timeout=timeout_s) as client:
        return await ask(client, model, questions, concurrency=concurrency)


async def ask(
    client: AsyncOpenAI, model: str, questions: Sequence[Fact], *, concurrency: int = 8
) -> ExactMatch:
    """As `evaluate_exact_match`, with a client of the caller's."""
    slots = asyncio.Semaphore(concurrency)

    async def one(fact: Fact) -> bool | None:
        async with slots:
            try:
                reply = await client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": fact.question}],
                    temperature=0.0,
                    max_tokens=MAX_ANSWER_TOKENS,
                )
            except APIError:
                return None
        return (reply.choices[0].message.content or "").strip() == fact.answer

    right = await asyncio.gather(*(one(fact) for fact in questions))
    categories = sorted({fact.category for fact in questions})
    by_category = {
        category: _count(
            [r for r, fact in zip(right, questions, strict=True) if fact.category == category], {}
        )
        for category in categories
    }
    return _count(right, by_category)


def _count(right: Sequence[bool | None], by_category: Mapping[str, ExactMatch]) -> ExactMatch:
    answered = [r for r in right if r is not None]
    return ExactMatch(len(answered), sum(answered), len(right) - len(answered), by_category)
