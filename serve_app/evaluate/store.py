"""The folder of an evaluation, and how it is filled: nothing that is there is asked again."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.domain.errors import EngineError
from serve_app.evaluate.endpoint import RequestFailedError
from serve_app.evaluate.raw import RawFile

RAW = "raw"
TOKENS = "tokens"
"""Beside the passes: the questions as token ids."""
GONE_AFTER = 8
"""Requests in a row that nobody listened to: the endpoint has ended, not one request failed."""


@dataclass(frozen=True)
class Store:
    """`raw/<who>/<what>.jsonl` under the output folder.

    `variants`: by model, what it is. It is written into every header, so that answers of a variant
    that was made anew are not mixed with the old ones'.
    """

    out: Path
    variants: Mapping[str, Mapping[str, object] | None] = field(default_factory=dict)

    def file(self, who: str, what: str, header: Mapping[str, object]) -> RawFile:
        """`header` names a `model`. Raises ConfigError where it holds answers to something else."""
        whole = {**header, "variant": self.variants.get(str(header["model"]))}
        return RawFile(self.out / RAW / _safe(who) / f"{_safe(what)}.jsonl", whole)


async def fill(
    file: RawFile,
    n: int,
    ask: Callable[[int], Awaitable[Mapping[str, object]]],
    concurrency: int,
    progress: Callable[[int, int], None],
) -> None:
    """Ask for every index below `n` that has no answer yet, and write each as it comes.

    A request that fails is written as such. Raises EngineError where the endpoint is gone, and
    what `ask` raises besides RequestFailedError.
    """
    missing = iter(sorted(set(range(n)) - file.answered()))
    done, gone = len(file.answered()), 0
    progress(done, n)

    async def worker() -> None:
        nonlocal done, gone
        for i in missing:
            try:
                record = await ask(i)
            except RequestFailedError as error:
                file.add({"i": i, "error": str(error)})
                gone = gone + 1 if error.is_gone else 0
                if gone >= GONE_AFTER:
                    raise EngineError(
                        f"the endpoint is gone: {error}; what was answered is kept: start it "
                        "again and run the same command with the same --out"
                    ) from error
            else:
                gone = 0
                file.add({"i": i, **record})
            done += 1
            progress(done, n)

    with file:
        workers = [asyncio.ensure_future(worker()) for _ in range(concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for each in workers:
                each.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
