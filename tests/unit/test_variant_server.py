"""A variant's start: the checkpoint is looked at before anything runs."""

import asyncio

import pytest

from serve_app.config.parse import parse
from serve_app.config.schema import VariantArgs
from serve_app.domain.checkpoint import VariantCard
from serve_app.domain.errors import CheckpointError, ConfigError, EngineError
from serve_app.serving import variant_server
from serve_app.serving.variant_server import VariantServer, preflight, preflight_if_local
from serve_app.telemetry.engine_metrics import EngineMetrics
from tests.fakes import checkpoints as made
from tests.fakes.asgi import Exchange
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.engine import StubEngine

TOKEN = "0123456789abcdef"


def variant_args(checkpoint: object, method: str = "gptq", **engine: object) -> VariantArgs:
    return parse(
        VariantArgs,
        {
            "model": "m",
            "name": "a",
            "checkpoint": str(checkpoint),
            "method": method,
            "engine": engine,
        },
        where="test",
    )


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    """The process's environment is what Serve gives a replica; here it is this test's own."""
    monkeypatch.setenv("QUANTILE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QUANTILE_INTERNAL_TOKEN", TOKEN)


def test_a_checkpoint_of_another_method_never_gets_to_an_engine(tmp_path):
    folder = write_checkpoint(tmp_path / "plain", made.PLAIN)
    for check in (preflight, preflight_if_local):
        with pytest.raises(CheckpointError, match="declares gptq, but the checkpoint is unquant"):
            check(variant_args(folder))


async def test_the_replica_looks_again(tmp_path):
    folder = write_checkpoint(tmp_path / "plain", made.PLAIN)
    with pytest.raises(CheckpointError, match="declares gptq"):
        await VariantServer(variant_args(folder)).__serve_build_asgi_app__()


def test_a_checkpoint_that_only_the_nodes_have_is_left_to_them():
    args = variant_args("/models/on/another/machine")
    preflight_if_local(args)
    with pytest.raises(CheckpointError, match="/models/on/another/machine"):
        preflight(args)


def test_a_reference_variant_that_is_not_built_is_refused_with_the_command_that_builds_it():
    for check in (preflight, preflight_if_local):
        with pytest.raises(CheckpointError, match="quantile reference build --only gptq"):
            check(variant_args("reference://gptq"))


class Nowhere:
    """Implements `serve_app.telemetry.engine_metrics.SeriesGauge`: Ray's would open a socket."""

    def set(self, value: float, tags: dict[str, str]) -> None:
        """Forgotten."""


def no_copies(card: VariantCard) -> EngineMetrics:
    return EngineMetrics(card, lambda name, labels: Nowhere())


class RecordingLoadMetrics:
    """Implements `serve_app.telemetry.metrics.LoadMetrics`."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.told: tuple[object, ...] | None = None
        self.samples: list[tuple[int | None, int | None, float | None]] = []

    def load(self, running: int | None, waiting: int | None, kv_use: float | None) -> None:
        self.samples.append((running, waiting, kv_use))

    def facts(self, card: VariantCard, started_s: float, gpu: tuple[str, float] | None) -> None:
        self.told = (card.name, card.bits, gpu)


async def test_a_variant_serves_its_card_and_its_names():
    script = {"max_model_len": 512, "faults": [{"kind": "FailFirst", "n": 2}]}
    server = VariantServer(
        variant_args("none", "awq", kind="fake", fake=script), RecordingLoadMetrics, no_copies
    )
    app = await server.__serve_build_asgi_app__()
    await server.check_health()
    known = [("x-quantile-internal", TOKEN)]
    card = (await Exchange(app, "GET", "/quantile/card", headers=known)()).json
    assert (card["name"], card["method"], card["context_length"]) == ("a", "awq", 512)
    assert (card["bits"], card["weight_bytes"], card["engine"]) == (4, 0, "fake")
    assert (
        card["facts"].items()
        >= {
            "checkpoint": "none",
            "engine": "fake",
            "max_model_len": "512",
            "faults": '[{"kind":"FailFirst","n":2,"status":503}]',
        }.items()
    )
    assert "max_num_seqs" not in card["facts"], "no bound is no fact"
    assert "gpu_type" not in card["facts"]
    listed = (await Exchange(app, "GET", "/v1/models", headers=known)()).json["data"]
    assert {"m@a", "m"} <= {model["id"] for model in listed}


async def test_a_card_says_what_of_a_gpu_is_set_aside():
    args = variant_args("none", "awq", kind="fake", fake={}).model_dump() | {
        "gpu": {"type": "L4", "fraction": 0.4627}
    }
    server = VariantServer(VariantArgs.model_validate(args), RecordingLoadMetrics, no_copies)
    app = await server.__serve_build_asgi_app__()
    known = [("x-quantile-internal", TOKEN)]
    card = (await Exchange(app, "GET", "/quantile/card", headers=known)()).json
    told = {name: card["facts"][name] for name in ("gpu_type", "gpu_fraction", "gpu_count")}
    assert told == {"gpu_type": "L4", "gpu_fraction": "0.4627", "gpu_count": "1"}
    await server.__del__()


async def test_an_engine_that_says_it_is_ill_has_the_replica_replaced():
    script = {"faults": [{"kind": "RefuseHealth"}]}
    server = VariantServer(
        variant_args("none", kind="fake", fake=script), RecordingLoadMetrics, no_copies
    )
    await server.check_health()  # not started: nothing to be ill
    await server.__serve_build_asgi_app__()
    with pytest.raises(EngineError):
        await server.check_health()


async def test_an_engine_that_dies_has_a_line_in_the_log_at_once(monkeypatch, caplog):
    monkeypatch.setattr(variant_server, "ALIVE_INTERVAL_S", 0.001)
    engine = StubEngine(None)

    async def start(spec):
        return engine

    monkeypatch.setattr(variant_server, "start_engine", start)
    server = VariantServer(variant_args("none", kind="fake"), RecordingLoadMetrics, no_copies)
    await server.__serve_build_asgi_app__()
    await asyncio.sleep(0.01)
    assert not [each for each in caplog.records if each.levelname == "ERROR"]
    engine.alive = False
    await asyncio.sleep(0.05)
    (line,) = (each for each in caplog.records if each.levelname == "ERROR")
    assert "the engine of a is dead: the stub is dead" in line.message
    assert (line.variant, line.engine) == ("a", "stub")
    await server.__del__()


async def test_how_busy_the_engine_is_is_published_until_the_replica_ends(monkeypatch):
    monkeypatch.setattr(variant_server, "LOAD_INTERVAL_S", 0.001)
    made: list[RecordingLoadMetrics] = []

    def metrics(variant: str) -> RecordingLoadMetrics:
        made.append(RecordingLoadMetrics(variant))
        return made[0]

    script = {"max_num_seqs": 4}
    server = VariantServer(variant_args("none", kind="fake", fake=script), metrics, no_copies)
    await server.__serve_build_asgi_app__()
    await asyncio.sleep(0.02)
    assert made[0].variant == "a"
    assert len(made[0].samples) > 1
    assert set(made[0].samples) == {(0, 0, 0.0)}
    assert made[0].told == ("a", 4, None)
    await server.__del__()
    await asyncio.sleep(0)
    n_samples = len(made[0].samples)
    await asyncio.sleep(0.02)
    assert len(made[0].samples) == n_samples


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"fake": {"ttft_ms": 5}}, "kind: fake"),
        ({"kind": "fake", "engine_args": {"seed": 1}}, "kind: vllm"),
    ],
)
def test_settings_of_the_other_kind_of_engine_are_not_ignored(engine, said):
    with pytest.raises(ConfigError, match=said):
        variant_args("none", **engine)


def test_options_of_the_deployment_have_their_place_in_the_file():
    with pytest.raises(ConfigError, match="deployment is not a known key"):
        parse(
            VariantArgs,
            {"model": "m", "name": "a", "checkpoint": "x", "method": "gptq"}
            | {"deployment": {"num_replicas": 4}},
            where="test",
        )
