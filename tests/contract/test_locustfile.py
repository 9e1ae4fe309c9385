"""`locust -f loadtests/locustfile.py`, as Locust users start it."""

import csv
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from serve_app.serving.ports import free_port

LOCUSTFILE = Path(__file__).parents[2] / "loadtests" / "locustfile.py"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *words]


def requests_by_name(prefix: Path) -> dict[str, dict[str, str]]:
    with Path(f"{prefix}_stats.csv").open() as lines:
        return {row["Name"]: row for row in csv.DictReader(lines)}


@pytest.mark.parametrize(
    "words",
    [
        ("-u", "4", "-r", "4", "-t", "4s"),
        ("-u", "4", "-r", "4", "-t", "4s", "--processes", "2"),
        ("--stages", "2x2,4x2"),
    ],
    ids=["one process", "two processes", "stages"],
)
def test_a_headless_run_counts_each_request_once(fake_server, tmp_path, words):
    base_url = fake_server("m@a", "m@b", ttft_ms=20, itl_ms=2)
    prefix = tmp_path / "locust"
    port = ("--master-bind-port", str(free_port())) if "--processes" in words else ()
    if port:
        port = (*port, "--master-port", port[1])
    done = subprocess.run(
        command("--host", base_url, "--headless", "--csv", str(prefix), *words, *port),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = requests_by_name(prefix)
    assert set(rows) <= {"m@a", "m@b", "Aggregated"}
    total = rows["Aggregated"]
    assert int(total["Failure Count"]) == 0
    assert 4 <= int(total["Request Count"]) <= 30  # 4 users, a second of thinking
    assert 80 < float(total["Median Response Time"]) < 400  # the whole answer: 32 tokens


def test_a_wrong_host_ends_the_run_with_the_reason(tmp_path):
    base_url = f"http://127.0.0.1:{free_port()}"
    done = subprocess.run(
        command("--host", base_url, "--headless", "-u", "1", "-t", "20s"),
        capture_output=True,
        text=True,
        timeout=15,
    )
    assert "/v1/models: " in done.stderr


@pytest.mark.parametrize("stages", ["garbage", "5x", "5x30,"])
def test_stages_that_cannot_be_read_are_refused_at_once(stages):
    done = subprocess.run(
        command("--host", "http://127.0.0.1:9", "--headless", "--stages", stages),
        capture_output=True,
        text=True,
        timeout=15,
    )
    assert done.returncode == 2
    assert f"--stages: need USERSxSECONDS,..., have '{stages}'" in done.stderr


def test_its_page_starts_users(fake_server):
    base_url = fake_server("m@a", ttft_ms=20, itl_ms=2)
    port = free_port()
    page = f"http://127.0.0.1:{port}"
    words = ("--host", base_url, "--web-host", "127.0.0.1", "--web-port", str(port))
    process = subprocess.Popen(command(*words), stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: b"Locust" in read(page))
        read(f"{page}/swarm", f"user_count=2&spawn_rate=2&host={base_url}".encode())
        wait_for(lambda: b'"m@a"' in read(f"{page}/stats/requests"))
    finally:
        process.terminate()
        process.wait(10)


def wait_for(is_so) -> None:
    deadline_s = time.monotonic() + 20
    while True:
        try:
            if is_so():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def read(url: str, data: bytes | None = None) -> bytes:
    with urllib.request.urlopen(url, data, timeout=5) as answer:
        return answer.read()
