"""Prometheus pages: where they are, and the samples that are wanted of one."""

import http.client
import math
from collections.abc import Iterator, Mapping, Sequence
from urllib.request import ProxyHandler, Request, build_opener

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from loadtests.campaign import Metrics
from loadtests.records.manifest import MetricSample

MOST_BYTES = 64 << 20
"""Of one page; the page of a large Ray cluster's node has a few MiB."""

_OPENER = build_opener(ProxyHandler({}))  # metrics are on this network, whatever the proxy
_PATH, _SCHEME = "__metrics_path__", "__scheme__"


class _Group(msgspec.Struct):
    """One entry of a service discovery file, as Prometheus' `file_sd_configs` reads it."""

    targets: list[str]
    labels: dict[str, str] = {}


def page_urls(metrics: Metrics) -> tuple[str, ...]:
    """Every page once: the campaign's own, and those that its discovery file lists now.

    Raises OSError or ValueError if that file cannot be read.
    """
    found = list(metrics.urls)
    if metrics.file_sd is not None:
        for group in msgspec.json.decode(metrics.file_sd.read_bytes(), type=list[_Group]):
            scheme, path = group.labels.get(_SCHEME, "http"), group.labels.get(_PATH, "/metrics")
            found += [f"{scheme}://{target}{path}" for target in group.targets]
    return tuple(dict.fromkeys(found))


def read_page(url: str, timeout_s: float) -> str:
    """The page as text. Raises OSError or ValueError."""
    request = Request(url, headers={"Accept": "text/plain; version=0.0.4"})  # noqa: S310 http(s)
    try:
        with _OPENER.open(request, timeout=timeout_s) as answer:
            page: bytes = answer.read(MOST_BYTES + 1)
    except http.client.HTTPException as error:
        raise OSError(repr(error)) from error
    if len(page) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes")
    return page.decode()


def samples_of(text: str, series: Sequence[str], t_ns: int) -> Iterator[MetricSample]:
    """The samples of a page whose names `series` lists; a name with `*` at its end is a beginning.

    Only their lines are parsed: a page of Ray has thousands of others. Values that are no finite
    number say nothing and are left out. Raises ValueError for text that is not Prometheus'.
    """
    exact = {name for name in series if not name.endswith("*")}
    begins = tuple(name[:-1] for name in series if name.endswith("*"))

    def is_wanted(line: str) -> bool:
        name = line.partition("{")[0].partition(" ")[0]
        return name in exact or (bool(begins) and name.startswith(begins))

    wanted = "\n".join(line for line in text.splitlines() if is_wanted(line))
    try:
        families = list(text_string_to_metric_families(wanted))
    except IndexError as error:  # so the parser ends on a few broken lines
        raise ValueError("not in Prometheus' text format") from error
    for family in families:
        for sample in family.samples:
            if math.isfinite(sample.value):
                yield MetricSample(
                    t_ns=t_ns, name=sample.name, labels=_told(sample.labels), value=sample.value
                )


def _told(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that have a value: to Prometheus an empty one is none."""
    return {name: value for name, value in labels.items() if value}
