"""`quantile status`: its view of a snapshot, and what it says when there is none."""

import json
import re

from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

from serve_app import status_cli
from serve_app.console.devices import Placed, devices_of
from serve_app.domain.checkpoint import VariantCard
from serve_app.domain.errors import ConfigError
from serve_app.serving.console_state import console_state
from serve_app.serving.recent_latency import RecentLatency
from serve_app.status_cli import sparkline, status_view, told_bytes, told_time
from tests.fakes.relay import card_of


def snapshot(ready: bool = True, **reports):
    """A console's snapshot of two variants, made by the router's own function."""
    replicas = {"running": 1, "target": None}
    variants = {
        "a": {"ready": ready, "asleep": False, "replicas": replicas, "share_bp": 9950},
        "b": {"ready": False, "asleep": True, "replicas": None, "share_bp": 50},
    }
    ladder = {"rung": "b", "reason": "[slow] P95 above target", "rungs": {}}
    alias = {"split": {"a": 9950, "b": 50}, "fallback": [], "cohorts": {}, "ladder": ladder}
    status = {
        "model": "m",
        "variants": variants,
        "aliases": {"m": alias | {"shadow": None}},
        "router": {"in_flight": 3, "waiting": 1, "breakers": {}, "draining": False},
    }
    cards: dict[str, VariantCard] = {"a": card_of("a", weight_bytes=2**30, scheme="[red]x")}
    return console_state(
        status,
        cards,
        lambda name: RecentLatency().view(name, 0.0),
        reports={"campaign": None, "rollout": None, "missing": None} | reports,
        host_bytes=2**32,
        epoch_s=0.0,
    )


def shown(state) -> str:
    console = Console(width=160, highlight=False)
    with console.capture() as captured:
        console.print(status_view(state))
    return captured.get()


def test_the_view_has_the_facts_and_takes_no_text_for_markup():
    found = {"name": "r1", "verdict": "rolled back", "lines": ["Step 1: fail: [b]TTFT"]}
    text = shown(snapshot(rollout=found))
    assert re.search(r"a\s+ready\s+\[red\]x\s+4\s+1 GiB\s+1/-\s+99.5 %\s+-\s+-\s+-", text)
    assert re.search(r"b\s+asleep\s+-\s+-\s+-\s+-\s+0.5 %", text)
    for part in (
        "m: 3 in flight, 1 waiting",
        "ladder: down to b ([slow] P95 above target)",
        "Host memory: ██████████░",
        "a 25.0 % (1 GiB)",
        "on no device, or not known: b",
        "last campaign: none found",
        "last rollout, r1: rolled back",
        "Step 1: fail: [b]TTFT",
    ):
        assert part in text


def test_a_missing_folder_of_reports_is_said():
    assert "set QUANTILE_REPORTS_DIR" in shown(snapshot(missing="set QUANTILE_REPORTS_DIR"))


def test_small_words():
    assert sparkline([0, None, 4, 7]) == "▁ ▅█"
    assert (sparkline([None]), sparkline([2, 2])) == ("", "▁▁")
    assert [told_time(t) for t in (None, 0.0123, 0.9999, 2)] == ["-", "12.3 ms", "1 s", "2 s"]
    assert [told_bytes(n) for n in (None, 5, 2**31, 2**52)] == ["-", "5 B", "2 GiB", "4.1e+03 TiB"]


def test_devices_of_nothing_are_none():
    assert devices_of([], 100) == devices_of([Placed("a", 1)], None) == ()


def run(monkeypatch, state, *options):
    async def fetch(url, key):
        if isinstance(state, Exception):
            raise state
        return state

    monkeypatch.setattr(status_cli, "fetch_state", fetch)
    alone = Typer()
    alone.command()(status_cli.status)
    return CliRunner().invoke(alone, options)


def test_json_is_the_snapshot_and_a_down_variant_with_a_share_is_exit_1(monkeypatch):
    result = run(monkeypatch, snapshot(), "--json")
    assert result.exit_code == 0
    assert json.loads(result.output) == json.loads(json.dumps(snapshot()))
    assert run(monkeypatch, snapshot(ready=False)).exit_code == 1


def test_json_and_watch_do_not_go_together(monkeypatch):
    assert isinstance(run(monkeypatch, snapshot(), "--json", "--watch").exception, ConfigError)
