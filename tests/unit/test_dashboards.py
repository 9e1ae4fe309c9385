"""The shipped dashboards: they load, and speak only of what exists."""

import json
import re

import pytest
import yaml

from serve_app.telemetry import names
from tests.fakes.prometheus import DASHBOARDS, OBSERVABILITY, VLLMS, panels, queries

OURS = {
    exported
    for metric in names.every_metric()
    for exported in (
        names.plain_names(metric)
        if metric.name.startswith("quantile_rollout_")  # served by the command itself
        else names.exported_names(metric)
    )
}
RAYS = {
    "ray_serve_deployment_replica_healthy",
    "ray_serve_autoscaling_target_replicas",
    "ray_serve_health_check_latency_ms_bucket",
    "ray_serve_event_loop_scheduling_latency_ms_bucket",
    "ray_node_mem_used",
    "ray_node_mem_total",
    "ray_node_cpu_utilization",
    "ray_component_uss_bytes",
}
"""Ray's own, seen on its pages (Ray 2.60); tests/serve_local/test_prometheus.py asks for them."""
HAPROXYS = {"haproxy_frontend_http_requests_total", "haproxy_backend_connection_errors_total"}
LABELS = {"ray_io_cluster"}
"""KubeRay's, put on by the PodMonitors of cluster/monitoring."""
_NAME = re.compile(r"\b(?:ray_|haproxy_|quantile_|quantile:|vllm)[a-zA-Z0-9_:]+")
_RULES = yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())["groups"]
RECORDED = {rule["record"] for group in _RULES for rule in group["rules"] if "record" in rule}
ALERTS = [rule for group in _RULES for rule in group["rules"] if "alert" in rule]
UNITS = {
    "reqps", "percentunit", "percent", "s", "ms", "short", "bytes", "dateTimeAsIso",
}  # fmt: skip


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.stem)
def dashboard(request):
    return json.loads(request.param.read_text("utf-8"))


def test_there_is_a_dashboard_for_each_question():
    assert [path.stem for path in DASHBOARDS] == [
        "campaign", "overview", "packing", "rollout", "variant",
    ]  # fmt: skip
    uids = {json.loads(path.read_text("utf-8"))["uid"] for path in DASHBOARDS}
    assert len(uids) == len(DASHBOARDS)


def test_only_names_that_exist(dashboard):
    known = OURS | RAYS | HAPROXYS | VLLMS | RECORDED
    for title, expr in queries(dashboard):
        used = set(_NAME.findall(expr))
        assert used or "ALERTS" in expr, f"{title}: {expr}"
        assert used <= known, f"{title}: {used - known}"


def test_alerts_use_only_names_that_exist_and_say_what_to_do():
    for group in _RULES:
        for rule in group["rules"]:
            used = set(_NAME.findall(rule["expr"])) - LABELS
            assert used <= OURS | RECORDED, f"{rule}: {used - OURS - RECORDED}"
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description"}, rule["alert"]


def test_every_panel_has_a_unit_a_description_and_no_data_source_of_its_own(dashboard):
    for panel in panels(dashboard):
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert len(panel["description"]) > 15, panel["title"]
        sources = [panel["datasource"], *(each["datasource"] for each in panel["targets"])]
        assert {each["uid"] for each in sources} == {"${DS_PROMETHEUS}"}, panel["title"]


def test_panels_do_not_overlap_and_have_ids_of_their_own(dashboard):
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_variables_are_declared_and_used(dashboard):
    declared = {each["name"] for each in dashboard["templating"]["list"]}
    text = json.dumps([panels(dashboard), dashboard["templating"]["list"]])
    used = set(re.findall(r"\$\{?([A-Za-z_]+)", text)) - {"__rate_interval", "__all"}
    assert used == declared
    assert {"DS_PROMETHEUS", "application"} <= declared


def test_quantiles_are_of_rates_by_bucket(dashboard):
    """A quantile of buckets that are summed without `le` is nonsense that looks well."""
    for title, expr in queries(dashboard):
        for found in re.findall(r"histogram_quantile\(([^{]*)", expr):
            assert re.match(r"0\.\d+, sum by \(le[,)]", found), f"{title}: {expr}"
