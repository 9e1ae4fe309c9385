"""Evidence from probes: the same request to both variants, one right after the other.

Whatever slows both for more than a moment is in both of a pair and cancels out. The order is drawn
for each pair, so that the second's advantage or disadvantage falls to both alike.
"""

import asyncio
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve_app.config.rollout_evidence import ProbesConfig
from serve_app.domain.errors import ConfigError
from serve_app.reference.corpus import facts
from serve_app.rollout.observations import Answer, Look, Pair, Pairs
from serve_app.rollouts.evidence import Clock
from serve_app.rollouts.probe_client import LimitedError, ProbeClient, Said
from serve_app.routing.agreement import normalised

Prompt = Mapping[str, Any]
"""`messages`, and `expect` where it is known."""


class ProbeEvidence:
    """Implements `Evidence`. Probes are sent from `begin` on, and only then."""

    mark = 0
    is_exhausted = False

    def __init__(
        self,
        config: ProbesConfig,
        model: str,
        baseline: str,
        candidate: str,
        clock: Clock,
        seed: int = 0,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.look_s = config.look_s
        self._config = config
        self._model = model
        self._arms = baseline, candidate
        self._clock = clock
        self._random = random.Random(seed)
        self._prompts = read_prompts(config.prompts)
        self._client = ProbeClient(config.base_url, _key(config, environ), config.timeout_s)
        self._sender: asyncio.Task[None] | None = None
        self._found: list[Pair] = []
        self._n_limited = 0
        self._limited = ""

    @property
    def trouble(self) -> str | None:
        """As in `Evidence`."""
        if not self._n_limited:
            return None
        return f"probes: {self._n_limited} not taken, the last: {self._limited}"

    async def begin(self) -> None:
        """As in `Evidence`; pairs that are under way are dropped with their requests."""
        await self._stop()
        self._found = []
        self._sender = asyncio.create_task(self._send())

    async def take(self) -> Look:
        """As in `Evidence`."""
        if self._sender is not None and self._sender.done():
            self._sender.result()  # it ends only by an error
        found, self._found = self._found, []
        return Look(pairs=Pairs.of(found))

    async def close(self) -> None:
        """As in `Evidence`."""
        await self._stop()
        await self._client.close()

    async def _stop(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
            self._sender = None

    async def _send(self) -> None:
        """A pair at each beat, as long as fewer than `concurrency` are under way."""
        free = asyncio.Semaphore(self._config.concurrency)

        async def ask(prompt: Prompt) -> None:
            try:
                pair = await self._pair(prompt)
                self._found.append(pair)  # not in one line: `take` puts another list there
            except LimitedError as error:
                self._n_limited += 1
                self._limited = str(error)
            finally:
                free.release()

        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await free.acquire()
                    group.create_task(ask(self._random.choice(self._prompts)))
                    await self._clock.sleep(self._random.expovariate(self._config.rate_per_s))
        except* ConfigError as errors:
            raise ConfigError(str(errors.exceptions[0])) from None

    async def _pair(self, prompt: Prompt) -> Pair:
        order = list(self._arms)
        self._random.shuffle(order)
        said = {variant: await self._ask(variant, prompt) for variant in order}
        baseline, candidate = (said[variant] for variant in self._arms)
        again = await self._ask(self._arms[0], prompt) if self._config.floor else None
        return Pair(
            baseline=_judged(baseline, prompt),
            candidate=_judged(candidate, prompt),
            disagrees=_disagree(baseline, candidate),
            floor_disagrees=None if again is None else _disagree(baseline, again),
        )

    async def _ask(self, variant: str, prompt: Prompt) -> Said:
        return await self._client.ask(self._model, variant, prompt, self._config.max_tokens)


def read_prompts(path: Path | None) -> tuple[Prompt, ...]:
    """The prompts of a JSONL file, or questions to the reference model. Raises ConfigError."""
    if path is None:
        return tuple(
            {"messages": [{"role": "user", "content": fact.question}], "expect": fact.answer}
            for fact in facts()
            if fact.split == "seen"
        )
    found = []
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the probes' prompts {path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            found.append(_prompt(line, f"{path}, line {number}"))
    if not found:
        raise ConfigError(f"{path} has no prompt: it needs one JSON object a line")
    return tuple(found)


def _prompt(line: str, where: str) -> Prompt:
    try:
        prompt = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    if not isinstance(prompt, dict) or not isinstance(prompt.get("messages"), list):
        raise ConfigError(f'{where}: need {{"messages": [...]}}, have {line[:80]}')
    if unknown := prompt.keys() - {"messages", "expect"}:
        raise ConfigError(f"{where}: unknown keys {', '.join(sorted(unknown))}")
    if not isinstance(prompt.get("expect", ""), str):
        raise ConfigError(f"{where}: `expect` is a text")
    return prompt


def _judged(said: Said, prompt: Prompt) -> Answer:
    answer, expected = said.answer, prompt.get("expect")
    if expected is None or said.text is None:
        return answer
    is_wrong = f" {normalised(expected)} " not in f" {normalised(said.text)} "
    return Answer(ok=answer.ok, ttft_s=answer.ttft_s, tpot_s=answer.tpot_s, wrong=is_wrong)


def _disagree(first: Said, second: Said) -> bool | None:
    if first.text is None or second.text is None:
        return None
    return normalised(first.text) != normalised(second.text)


def _key(config: ProbesConfig, environ: Mapping[str, str]) -> str | None:
    if config.api_key_env is None:
        return None
    key = environ.get(config.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"the probes' API key is to be in {config.api_key_env}, which is not set or empty"
        )
    return key
