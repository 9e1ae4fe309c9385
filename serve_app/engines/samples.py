"""An engine's own metrics as plain samples, whatever engine it is."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families


class Sample(NamedTuple):
    """One series of an engine's own metrics now, by the engine's own name and labels."""

    name: str
    labels: Mapping[str, str]
    value: float


def page_samples(page: str) -> list[Sample]:
    """The samples of a page in Prometheus's text format."""
    return list(family_samples(text_string_to_metric_families(page)))


def family_samples(families: Iterable[Any]) -> Iterator[Sample]:
    """Those of prometheus_client's metric families; when a series began is left out."""
    for family in families:
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                yield Sample(sample.name, sample.labels, sample.value)


async def app_samples(app: Any) -> list[Sample]:
    """Those of the `/metrics` page of an engine's application, asked in process.

    Empty where it has no such page.
    """
    status, chunks = 0, []

    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:  # there is no more, and whoever asks does not leave
            await asyncio.Event().wait()
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            chunks.append(message.get("body", b""))

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/metrics",
        "headers": [],
        "query_string": b"",
    }
    await app(scope, receive, send)
    return page_samples(b"".join(chunks).decode()) if status == HTTPStatus.OK else []
