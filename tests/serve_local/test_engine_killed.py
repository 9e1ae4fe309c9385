"""An engine that is killed under load is seen in metrics, alert, trace, log and console.

One instance, with all of them on, whose engine is killed once; then each of the five is looked at.
"""

import json
import os
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.serve_content import serve_content, variant_application
from serve_app.serving.local_serve import LocalServe
from serve_app.serving.ports import own_ports
from tests.fakes.browser import Browser, chromium_browser
from tests.fakes.drill_instance import engines_of
from tests.fakes.known_load import CLIENT_SPAN, Asked, KnownLoad
from tests.fakes.otlp import Collector, Span
from tests.fakes.prometheus import Prometheus, need
from tests.fakes.serve_client import fake_args, metrics_file, replica_pids, wait_until
from tests.serve_local.conftest import write_config

pytestmark = [pytest.mark.serve, pytest.mark.timeout(300)]
PORT, MODEL = 8180, "m"
SHARES = {"a": 5000, "b": 5000}
SCRIPT = {"ttft_ms": 600, "itl_ms": 25, "output_tokens": 60, "own_process": True}
HEALTH_CHECK_S = 5.0
"""Serve replaces the replica after three: long enough to be on a metrics page, which is written
every ten seconds."""
BROKEN = 'sum(ray_quantile_router_broken_streams_total{variant="b"})'
RETRIED = 'sum(ray_quantile_router_retries_total{variant="b", outcome="asked"})'
READY = 'max_over_time(max(ray_quantile_router_variant_ready{variant="b"})[5m:1s])'
LEAST_READY = 'min_over_time(max(ray_quantile_router_variant_ready{variant="b"})[5m:1s])'
ALERTS = 'ALERTS{alertstate="firing"}'
HEALTH_OF_B = (
    "Array.from(document.querySelectorAll('#variants tr'))"
    ".filter(r => r.cells[0].textContent === 'b').map(r => r.cells[1].dataset.health)[0]"
)
ANNOUNCED = "document.getElementById('announcement').textContent"


@dataclass
class Seen:
    """What could be seen from the kill to the variant's return."""

    asked: list[Asked] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    """Of the log, its files' names beside them as `file`."""
    values: dict[str, float | None] = field(default_factory=dict)
    """What Prometheus answered, by query."""
    alerts: set[tuple[str, str]] = field(default_factory=set)
    """Names and variants of those that fired."""
    health: list[str] = field(default_factory=list)
    """Of `b` in the console, whenever it changed."""
    announced: list[str] = field(default_factory=list)
    page_was_kept: bool = False
    page_said: list[dict[str, object]] = field(default_factory=list)

    @property
    def broken(self) -> list[Asked]:
        return [each for each in self.asked if each.ended != "whole"]

    @property
    def retried(self) -> list[Asked]:
        """Those whose span tells of an attempt that met the dead engine."""
        events = [(span.trace, told) for span in self.spans for _, told in span.events]
        met = {trace for trace, told in events if told["error.type"] == "ReplicaLostError"}
        return [each for each in self.asked if each.trace in met]

    @property
    def is_back(self) -> bool:
        """Whether `b` was down and is ready again, in the console."""
        return "down" in self.health and self.health[-1] == "ready"

    def router_span(self, asked: Asked) -> Span:
        (span,) = (each for each in self._of(asked) if each.service == "quantile-router")
        return span

    def variant_spans(self, asked: Asked) -> dict[str, Span]:
        found = [each for each in self._of(asked) if each.service == "quantile-variant"]
        return {each.attributes["quantile.variant"]: each for each in found}

    def _of(self, asked: Asked) -> list[Span]:
        return [each for each in self.spans if each.trace == asked.trace]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Seen:
    need("prometheus")
    folder = tmp_path_factory.mktemp("killed")
    with ExitStack() as stack:
        browser = stack.enter_context(chromium_browser(folder / "profile"))
        collector = stack.enter_context(Collector())
        serve = stack.enter_context(_serve(folder, collector.port))
        pages = metrics_file(serve.pid)
        prometheus = stack.enter_context(Prometheus(folder, file_sd=pages))
        found = Seen()
        load = KnownLoad(serve.base_url, MODEL, SHARES, gap_s=0.1)
        _open(browser, serve.base_url)
        with load:
            _kill(serve.pid, load)
            _follow(found, browser, prometheus)
        found.asked = load.asked
        n_broken = len(found.broken)
        prometheus.until(lambda: _value(prometheus, BROKEN) == n_broken, 40)
        found.values = {expr: _value(prometheus, expr) for expr in (READY, LEAST_READY, RETRIED)}
        found.spans = collector.wait_for(lambda spans: _all_are_there(spans, found.asked))
        found.lines = _lines(pages.parent / "logs" / "serve")
        found.page_was_kept = browser.ask("window.sinceBefore") is True
        found.page_said = browser.console()
        return found


def _serve(folder: Path, collector_port: int) -> LocalServe:
    checks = {"health_check_period_s": HEALTH_CHECK_S}
    variants = [variant_application(fake_args(MODEL, each, SCRIPT), checks) for each in SHARES]
    rules = {"split": SHARES, "fallback": list(SHARES), "log_requests": True}
    config = serve_content(PORT, MODEL, rules, variants)
    config["logging_config"] = {"encoding": "JSON"}
    environ = {
        **own_ports(),
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "RAY_metrics_report_interval_ms": "5000",
    }
    file = write_config(folder / "serve.yaml", config)
    return LocalServe(file, log=folder / "serve.log", ready_timeout_s=180, environ=environ)


def _open(browser: Browser, base_url: str) -> None:
    browser.open(f"{base_url}/console")
    wait_until(lambda: browser.ask(HEALTH_OF_B) == "ready", 20, "the console shows `b` ready")
    browser.run("window.sinceBefore = true;")


def _kill(serve_pid: int, load: KnownLoad) -> None:
    """Once some streams of `b` have begun and others have not."""
    (replica,) = replica_pids("b:VariantServer", serve_pid)
    (engine,) = engines_of(replica)
    wait_until(lambda: min(load.under_way("b")) >= 2, 20, "streams of `b` under way")
    os.kill(engine.pid, signal.SIGKILL)


def _follow(found: Seen, browser: Browser, prometheus: Prometheus) -> None:
    """Until `b` is back in the console and the alert has fired, or too long."""
    end_s = time.monotonic() + 120
    wanted = ("QuantileEngineRestarted", "b")
    while not found.is_back or wanted not in found.alerts:
        if time.monotonic() > end_s:
            return
        for told, expression in ((found.health, HEALTH_OF_B), (found.announced, ANNOUNCED)):
            now = str(browser.ask(expression))
            if told[-1:] != [now]:
                told.append(now)
        labels = [each["metric"] for each in prometheus.ask(ALERTS)]
        found.alerts |= {(each["alertname"], each.get("variant", "")) for each in labels}
        time.sleep(0.2)


def _value(prometheus: Prometheus, expr: str) -> float | None:
    series = prometheus.ask(expr)
    return float(series[0]["value"][1]) if series else None


def _all_are_there(spans: list[Span], asked: list[Asked]) -> bool:
    routed = {span.trace for span in spans if span.service == "quantile-router"}
    answered = {span.trace for span in spans if span.service == "quantile-variant"}
    return {each.trace for each in asked} <= routed & answered


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) | {"file": path.name}
        for path in sorted(folder.glob("replica_*.log"))
        for line in path.read_text("utf-8").splitlines()
        if line.startswith("{")
    ]


def test_the_clients_of_the_dead_engine_lose_begun_streams_and_nothing_else(seen):
    assert len(seen.broken) >= 2 and len(seen.retried) >= 2
    for each in seen.broken:
        assert (each.status, each.variant, each.ended) == (200, "b", "stream_broken")
    for each in seen.retried:
        assert (each.meant_for, each.variant, each.reason) == ("b", "a", "fallback")
    assert seen.asked[-1].reason == "sticky" and {"a", "b"} == {
        each.variant for each in seen.asked[-4:]
    }


def test_metrics(seen):
    """The count of broken streams was waited for: it is the clients' own."""
    assert seen.values[READY] == 1
    assert seen.values[LEAST_READY] == 0
    assert seen.values[RETRIED] == len(seen.retried)


def test_alert(seen):
    assert ("QuantileEngineRestarted", "b") in seen.alerts
    assert not [each for each in seen.alerts if each[1] == "a" or "NoReady" in each[0]]


def test_trace(seen):
    for each in seen.broken:
        routed = seen.router_span(each)
        assert routed.is_error and routed.parent == CLIENT_SPAN
        told = routed.attributes
        assert (told["quantile.variant"], told["quantile.request.id"]) == ("b", each.request_id)
        assert (told["quantile.ending"], told["error.type"]) == ("broke_off", "broke_off")
        served = seen.variant_spans(each)["b"]
        assert served.is_error and served.parent == routed.id
        assert served.attributes["error.type"] == "EngineError"
    for each in seen.retried:
        routed = seen.router_span(each)
        assert not routed.is_error and routed.attributes["quantile.variant"] == "a"
        ((name, failed),) = routed.events
        assert (name, failed["quantile.variant"]) == ("quantile.attempt.failed", "b")
        assert "its engine is dead" in failed["quantile.reason"]
        assert seen.variant_spans(each)["a"].parent == routed.id
    lost = [spans["b"] for each in seen.retried if "b" in (spans := seen.variant_spans(each))]
    assert len(lost) >= 2, "those that had not begun when their engine was killed"
    assert {(span.is_error, span.attributes["error.type"]) for span in lost} == {
        (True, "engine_dead")
    }


def test_log(seen):
    for each in seen.broken:
        (line,) = (
            line
            for line in seen.lines
            if line.get("request") == each.request_id and line["message"] == "request"
        )
        assert line["file"].startswith("replica_router_VariantRouter")
        assert (line["levelname"], line["variant"], line["trace"]) == ("ERROR", "b", each.trace)
        assert (line["whole"], line["ending"], line["status"]) == (False, "broke_off", 200)
    (died,) = (line for line in seen.lines if "the engine of b is dead" in line["message"])
    assert died["file"].startswith("replica_b_VariantServer")
    assert (died["levelname"], died["variant"]) == ("ERROR", "b")
    assert "has ended" in died["message"], "with the reason"
    assert not [line for line in seen.lines if "the engine of a" in line["message"]]


def test_console(seen):
    """It follows by itself: the page is the one that was opened before."""
    assert seen.is_back and set(seen.health) <= {"ready", "down", "breaker open"}, seen.health
    down, ready = (seen.announced.index(f"b is {each}.") for each in ("down", "ready"))
    assert down < ready
    assert seen.page_was_kept
    assert seen.page_said == []
