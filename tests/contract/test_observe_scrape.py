"""Metrics pages read while a load runs: what is kept, and what goes wrong without harm."""

import json
import threading
import time
from pathlib import Path

import pytest

from loadtests.campaign import parse_campaign
from loadtests.observe.pages import own_metrics
from loadtests.observe.scrape import LEAVE_WITHIN_S, Scraper
from loadtests.records.manifest import MetricSample, RunFiles
from loadtests.records.record import read_lines
from tests.fakes.gateway import Gateway, as_text

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
INTERVAL_S = 0.02
SERIES = ["vllm:kv_cache_usage_perc", "ray_serve_num_*"]
PAGE = """# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",schema="",model_name="m@a"} 0.25
vllm:kv_cache_usage_perc_more 9
# TYPE ray_serve_num_requests counter
ray_serve_num_requests_total{route="/v1, \\"x\\"",n="{}"} 7.0
ray_serve_num_stale NaN
ray_serve_other 3
a line that is { not = of the format
"""


@pytest.fixture
def gateway():
    with Gateway() as running:
        running.answers["/metrics"] = as_text(PAGE)
        yield running


def scraped(folder: Path, during: object, epoch_ns: int | None = None, **metrics: object):
    """The scraper after `during(files)`, and the samples that it kept."""
    campaign = parse_campaign(
        {
            "target": {"model": "m", "variants": ["a"]},
            "workload": {"prompts": {"kind": "corpus"}, "max_tokens": [4, 4]},
            "stages": [{"name": "s", "kind": "constant", "rate_per_s": 1.0, "duration_s": 1.0}],
            "metrics": {"series": SERIES, "interval_s": INTERVAL_S, **metrics},
        },
        "test",
    )
    files = RunFiles(folder)
    with Scraper(campaign, files, epoch_ns or time.monotonic_ns()) as scraper:
        during(files)
    return scraper, list(read_lines(files.samples, MetricSample))


def until(n_lines: int):
    """Wait until so many samples are on the disk."""

    def wait(files: RunFiles) -> None:
        deadline_s = time.monotonic() + 5
        while time.monotonic() < deadline_s:
            if files.samples.exists() and files.samples.read_bytes().count(b"\n") >= n_lines:
                return
            time.sleep(0.005)
        pytest.fail("no samples came")

    return wait


def until_asked(gateway: Gateway, n: int):
    def wait(_: RunFiles) -> None:
        deadline_s = time.monotonic() + 5
        while len(gateway.asked) < n:
            assert time.monotonic() < deadline_s
            time.sleep(0.005)

    return wait


def test_the_series_that_were_asked_for_at_every_interval(gateway, tmp_path):
    epoch_ns = time.monotonic_ns()
    scraper, samples = scraped(tmp_path, until(6), epoch_ns, urls=[f"{gateway.url}/metrics"])
    end_ns = time.monotonic_ns() - epoch_ns
    kv, requests = samples[:2]
    assert (kv.name, kv.value) == ("vllm:kv_cache_usage_perc", 0.25)
    assert kv.labels == {"engine": "0", "model_name": "m@a"}
    assert (requests.name, requests.value) == ("ray_serve_num_requests_total", 7.0)
    assert requests.labels == {"route": '/v1, "x"', "n": "{}"}
    assert {sample.name for sample in samples} == {kv.name, requests.name}
    stamps = sorted({sample.t_ns for sample in samples})
    assert len(stamps) >= 3
    assert 0 < stamps[0] <= stamps[-1] <= end_ns
    assert stamps[2] - stamps[0] >= INTERVAL_S * 1e9
    assert scraper.n_samples == len(samples)
    assert not scraper.failures
    assert scraper.trouble() is None


def test_the_discovery_file_is_read_anew_each_time(gateway, tmp_path):
    targets = tmp_path / "sd.json"
    host = gateway.url.removeprefix("http://")
    listed = [{"labels": {"job": "ray"}, "targets": [host, "127.0.0.1:9"]}]
    gateway.answers["/else"] = as_text("ray_serve_num_x 1\n")

    def appear(files: RunFiles) -> None:
        time.sleep(INTERVAL_S * 2)
        targets.write_text(json.dumps(listed))
        until(2)(files)
        moved = {"labels": {"__metrics_path__": "/else"}, "targets": [host]}
        targets.write_text(json.dumps([moved]))
        until_x = time.monotonic() + 5
        while b"ray_serve_num_x" not in files.samples.read_bytes():
            assert time.monotonic() < until_x
            time.sleep(0.005)

    scraper, samples = scraped(tmp_path, appear, file_sd=str(targets))
    assert {sample.name for sample in samples} >= {"vllm:kv_cache_usage_perc", "ray_serve_num_x"}
    assert any("sd.json" in text for text in scraper.failures), "missing at first"
    assert any("127.0.0.1:9" in text and "refused" in text for text in scraper.failures)


@pytest.mark.parametrize(
    "broken",
    [
        as_text("ray_serve_num_x{a= 1\n"),
        as_text(b"ray_serve_num_x \xff\n"),
        as_text("ray_serve_num_x one\n"),
        as_text('ray_serve_num_x{x="1", ="b"} 1\n'),  # the parser has an IndexError for it
        as_text("gone", 500),
    ],
)
def test_a_broken_page_costs_its_own_samples_only_and_is_told_once(gateway, tmp_path, broken):
    gateway.answers["/broken"] = broken
    urls = [f"{gateway.url}/broken", f"{gateway.url}/metrics"]
    scraper, samples = scraped(tmp_path, until(6), urls=urls)
    assert {sample.name for sample in samples} == {
        "vllm:kv_cache_usage_perc",
        "ray_serve_num_requests_total",
    }
    ((text, n),) = scraper.failures.items()
    assert "/broken" in text
    assert n >= 2
    assert scraper.trouble().startswith(f"metrics: {n} x {gateway.url}/broken: ")
    assert "\n" not in scraper.trouble()


@pytest.mark.parametrize("content", [None, "[{]", '{"targets": []}'])
def test_without_a_readable_discovery_file_the_other_pages_are_read(gateway, tmp_path, content):
    targets = tmp_path / "sd.json"
    if content is not None:
        targets.write_text(content)
    urls = [f"{gateway.url}/metrics"]
    scraper, samples = scraped(tmp_path, until(4), urls=urls, file_sd=str(targets))
    assert len(samples) >= 4
    ((text, n),) = scraper.failures.items()
    assert "sd.json: " in text
    assert n >= 2


def test_a_campaign_without_any_of_its_series_is_told(gateway, tmp_path):
    gateway.answers["/metrics"] = as_text("up 1\n")
    scraper, samples = scraped(tmp_path, until_asked(gateway, 2), urls=[f"{gateway.url}/metrics"])
    assert samples == []
    assert not scraper.failures
    assert scraper.trouble() == "metrics: none of the campaign's series was found"


def test_many_failures_are_one_line(tmp_path):
    urls = [f"http://127.0.0.1:{port}/" for port in (1, 2, 3, 4, 9)]
    scraper, _ = scraped(tmp_path, lambda _: time.sleep(INTERVAL_S * 5), urls=urls)
    assert len(scraper.failures) == 5
    said = scraper.trouble()
    assert said.startswith("metrics: none of the campaign's series was found; ")
    assert said.endswith("; and 2 more")


def test_only_pages_of_the_web_are_read_also_where_one_is_moved_to(gateway, tmp_path):
    (tmp_path / "secret").write_text("vllm:kv_cache_usage_perc 1\n")
    host = gateway.url.removeprefix("http://")
    groups = [
        {"labels": {"__scheme__": "file", "__metrics_path__": str(tmp_path / "secret")}},
        {"labels": {"__metrics_path__": "/moved"}},
        {"labels": {"__metrics_path__": "/ftp"}},
        {"labels": {"__metrics_path__": "/here"}},
    ]
    targets = ([""], [host], [host], [host])
    listed = [group | {"targets": target} for group, target in zip(groups, targets, strict=True)]
    (tmp_path / "sd.json").write_text(json.dumps(listed))
    gateway.answers["/moved"] = lambda _: (302, b"", {"location": f"file://{tmp_path}/secret"})
    gateway.answers["/ftp"] = lambda _: (302, b"", {"location": "ftp://127.0.0.1:9/secret"})
    gateway.answers["/here"] = lambda _: (302, b"", {"location": "/metrics"})
    scraper, samples = scraped(tmp_path, until(2), file_sd=str(tmp_path / "sd.json"))
    assert {sample.labels.get("engine") for sample in samples} == {"0", None}
    assert {sample.value for sample in samples} == {0.25, 7.0}
    assert any(
        text.startswith("file://") and "unknown url type" in text for text in scraper.failures
    )
    assert any("/moved: " in text for text in scraper.failures)
    assert any("/ftp: " in text and "unknown url type" in text for text in scraper.failures)


def with_metrics(base_url: str, **metrics: object):
    raw = {
        "target": {"base_url": base_url, "model": "m", "variants": ["a"]},
        "workload": {"prompts": {"kind": "corpus"}, "max_tokens": [4, 4]},
        "stages": [{"name": "s", "kind": "constant", "rate_per_s": 1.0, "duration_s": 1.0}],
        "metrics": metrics,
    }
    return parse_campaign(raw, "test")


RAYS = "/tmp/ray/prom_metrics_service_discovery.json"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0"])
def test_the_local_ray_cluster_is_watched_where_it_is_the_target(host):
    campaign = with_metrics(f"http://{host}:8000", file_sd=RAYS)
    assert own_metrics(campaign) == (campaign, ())


def test_the_local_ray_cluster_is_left_out_where_another_machine_is_the_target():
    elsewhere = "http://192.0.2.1:8000"  # of no machine, RFC 5737
    campaign, (note,) = own_metrics(with_metrics(elsewhere, file_sd=RAYS))
    assert campaign.metrics is None
    assert RAYS in note and "192.0.2.1" in note and "metrics.urls" in note
    pages = "http://192.0.2.1:8080/metrics"
    campaign, notes = own_metrics(with_metrics(elsewhere, file_sd=RAYS, urls=[pages]))
    assert (campaign.metrics.urls, campaign.metrics.file_sd, len(notes)) == ((pages,), None, 1)
    for mine in ({"file_sd": "/etc/prometheus/sd.json"}, {"urls": [pages]}):
        campaign = with_metrics(elsewhere, **mine)
        assert own_metrics(campaign) == (campaign, ())


def test_a_page_that_hangs_does_not_hold_up_the_end_and_comes_too_late(gateway, tmp_path):
    go_on = threading.Event()

    def hang(body: bytes):
        go_on.wait(5)
        return as_text(PAGE)(body)

    gateway.answers["/metrics"] = hang
    took: list[float] = []

    def during(files: RunFiles) -> None:
        until_asked(gateway, 1)(files)
        took.append(time.monotonic())

    # an interval so long that the read is still waited for when the run is over
    scraper, _ = scraped(tmp_path, during, urls=[f"{gateway.url}/metrics"], interval_s=5.0)
    assert time.monotonic() - took[0] < LEAVE_WITHIN_S + 1.0
    go_on.set()
    scraper._thread.join(5)
    assert not scraper._thread.is_alive()
    assert list(read_lines(RunFiles(tmp_path).samples, MetricSample)) == []


def test_without_metrics_nothing_is_read_and_nothing_written(tmp_path):
    campaign = parse_campaign(
        {
            "target": {"model": "m", "variants": ["a"]},
            "workload": {"prompts": {"kind": "corpus"}, "max_tokens": [4, 4]},
            "stages": [{"name": "s", "kind": "constant", "rate_per_s": 1.0, "duration_s": 1.0}],
        },
        "test",
    )
    with Scraper(campaign, RunFiles(tmp_path), 0) as scraper:
        pass
    assert scraper.trouble() is None
    assert list(tmp_path.iterdir()) == []
