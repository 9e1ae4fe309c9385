"""Prometheus pages: where they are, and the samples that are wanted of one."""

import http.client
import math
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
    UnknownHandler,
)

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from loadtests.campaign import Campaign, Metrics
from loadtests.records.manifest import MetricSample

MOST_BYTES = 64 << 20
"""Of one page; the page of a large Ray cluster's node has a few MiB."""

_OPENER = OpenerDirector()
"""Reads http and https, also where a page is moved to: no file of this machine, no ftp. It knows
no proxy, as metrics are on this network."""
for _handler in (
    HTTPHandler(),
    HTTPSHandler(),
    HTTPRedirectHandler(),
    HTTPDefaultErrorHandler(),
    HTTPErrorProcessor(),
    UnknownHandler(),
):
    _OPENER.add_handler(_handler)
RAY_FOLDER = Path("/tmp/ray")  # noqa: S108 that is where Ray writes
_PATH, _SCHEME = "__metrics_path__", "__scheme__"


class _Group(msgspec.Struct):
    """One entry of a service discovery file, as Prometheus' `file_sd_configs` reads it."""

    targets: list[str]
    labels: dict[str, str] = {}


def own_metrics(campaign: Campaign) -> tuple[Campaign, tuple[str, ...]]:
    """The campaign without the discovery file of this machine's Ray where the target is another
    machine, and what to note of that: the pages would be of a cluster that bears no load.
    """
    metrics, host = campaign.metrics, urlsplit(campaign.target.base_url).hostname or ""
    if metrics is None or metrics.file_sd is None or is_this_machine(host):
        return campaign, ()
    if not metrics.file_sd.is_relative_to(RAY_FOLDER):
        return campaign, ()
    less = metrics.model_copy(update={"file_sd": None}) if metrics.urls else None
    note = (
        f"no metrics of {metrics.file_sd}: it lists the Ray cluster of the machine that sends the "
        f"load, and the target is {host}. Name the target's pages in metrics.urls"
    )
    return campaign.model_copy(update={"metrics": less}), (note,)


def is_this_machine(host: str) -> bool:
    """Whether `host` is an address of this machine: one that a socket can be bound to."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return False
    return any(_can_bind(family, address) for family, *_, address in found)


def _can_bind(family: int, address: tuple[object, ...]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


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
    """The page as text. Raises OSError or ValueError, also for what is not http(s)."""
    request = Request(url, headers={"Accept": "text/plain; version=0.0.4"})  # noqa: S310 by _OPENER
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
