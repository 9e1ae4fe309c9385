"""Every panel's query against a real Prometheus, which scrapes a page with all of our names.

Here labels and joins are tried. That Ray's pages have these series is tests/serve_local's.
"""

import json

import pytest

from tests.fakes.metrics_page import Traffic, metrics_page
from tests.fakes.prometheus import DASHBOARDS, Prometheus, filled_in, need, queries


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    need("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    traffic = Traffic()
    with metrics_page(traffic) as page:
        file_sd = folder / "targets.json"
        file_sd.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": [page]}]))
        static = {"haproxy": page, "rollout": page}
        with Prometheus(folder, file_sd=file_sd, static=static) as running:
            running.until(
                lambda: running.ask("count_over_time(ray_quantile_router_requests_total[1m]) > 5"),
                30,
            )
            running.traffic = traffic
            yield running


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_query_has_an_answer(prometheus, path):
    """A rule of the longest window needs as long to have two samples as the others: seconds."""
    dashboard = json.loads(path.read_text("utf-8"))
    silent = [
        (title, expr)
        for title, expr in queries(dashboard)
        if not prometheus.ask(filled_in(expr, baseline="bf16", __rate_interval="10s"))
        and "ALERTS" not in expr
    ]
    assert not silent


def test_the_shipped_configuration_reads_ray_haproxy_and_the_rollout(prometheus):
    assert prometheus.targets() == {"ray": ["up"], "haproxy": ["up"], "rollout": ["up"]}
    assert not prometheus.ask('{job="ray", otel_scope_name=~".+"}')


def test_what_the_figures_mean(prometheus):
    """Traffic is one request a second of each label set, a status 503 among them."""
    rate = prometheus.ask("sum(irate(ray_quantile_router_requests_total[10s]))")
    assert float(rate[0]["value"][1]) == pytest.approx(4.0, rel=0.05)
    errors = prometheus.ask("quantile:slo_availability:error_ratio_5m")
    assert float(errors[0]["value"][1]) == pytest.approx((2 + 2) / 4, rel=0.05)
    firing = prometheus.ask('ALERTS{alertname=~"QuantileNo.*|Quantile.*Restart.*|QuantilePlan.*"}')
    assert not firing


def test_an_alert_fires_on_what_the_page_says(prometheus):
    prometheus.traffic.gauges["quantile_rollout_verdict"] = 1.0
    prometheus.until(
        lambda: prometheus.ask(
            'ALERTS{alertname="QuantileRolloutRolledBack", alertstate="firing", candidate="awq"}'
        ),
        10,
    )
