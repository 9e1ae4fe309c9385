import datetime
import math
import sys

import pytest

from serve_app.calibrate.engine_run import EngineRun
from serve_app.calibrate.measure import entry_of, gpus_at_hand, type_of
from serve_app.cli import main
from serve_app.config.gpus import load_gpus
from serve_app.config.schema import VariantArgs
from serve_app.domain.errors import ConfigError, EngineError, InvalidRunError
from serve_app.domain.gpu import GpuProfile
from serve_app.domain.units import GIB, MIB
from serve_app.node.devices import Holding
from serve_app.planning.footprint import EngineSizes

ARGS = VariantArgs(model="m", name="awq", checkpoint="reference://awq", method="awq")
SIZES = EngineSizes(1024, 32, 2048, 32)
UUID = "GPU-6f1c"
RANK = {
    "pid": 4711,
    "device": "cuda",
    "uuid": UUID,
    "weights_bytes": 3 * GIB,
    "kv_cache_bytes": 2 * GIB,
    "torch_bytes": 6 * GIB,
    "graph_pool_bytes": 100 * MIB,
    "free_bytes": 16 * GIB,
    "total_bytes": 22 * GIB,
}
TODAY = datetime.date(2026, 11, 20)


class Card:
    """A GPU at hand."""

    def __init__(self, name="NVIDIA L4", total_mib=23034, holders=()):
        self.key = UUID
        self._holders = list(holders)
        self._profile = GpuProfile(name, name, total_mib * MIB, 553 * MIB, (8, 9), math.nan)

    def profile(self):
        return self._profile

    def total_bytes(self):
        return self._profile.total_bytes

    def free_bytes(self):
        return self._profile.usable_bytes

    def used_by(self, pids):
        return None

    def holders(self):
        return self._holders


def entry(*ranks, held=None):
    run = EngineRun("0.32.0+cu130", SIZES, ranks or (RANK,), held or {UUID: 6 * GIB + 500 * MIB})
    return entry_of(ARGS, "awq W4A16 g128", "L4", run, TODAY, "quantile calibrate x.yaml")


def test_a_recorded_run_becomes_an_entry():
    made = entry()
    assert made.checkpoint == "reference://awq"
    assert (made.gpu, made.vllm, made.date) == ("L4", "0.32.0", TODAY)
    assert made.sizes.sizes() == SIZES
    assert made.weights_bytes == 3 * GIB
    assert made.activation_bytes == GIB - 100 * MIB
    assert made.cuda_graphs_bytes == 100 * MIB
    assert made.context_bytes == 500 * MIB


def test_the_largest_rank_is_recorded():
    other = RANK | {"uuid": "GPU-77", "weights_bytes": 3 * GIB + MIB, "torch_bytes": 6 * GIB + MIB}
    held = {UUID: 6 * GIB + 500 * MIB, "GPU-77": 6 * GIB + 600 * MIB}
    made = entry(RANK, other, held=held)
    assert made.weights_bytes == 3 * GIB + MIB
    assert made.context_bytes == 599 * MIB


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (RANK | {"device": "cpu"}, "ran on cpu.*CPU build"),
        (RANK | {"uuid": "GPU-other"}, "GPU-other.*GPU-6f1c was watched"),
        (RANK | {"torch_bytes": 7 * GIB}, "does not add up"),
    ],
)
def test_a_run_that_says_nothing_about_this_gpu_is_none(rank, message):
    with pytest.raises(InvalidRunError, match=message):
        entry(rank)


def test_the_card_is_named_as_in_the_catalogue():
    assert type_of([Card()], load_gpus()) == "L4"
    with pytest.raises(ConfigError, match=r"RTX 4090.*not in the catalogue.*gpus\.yaml"):
        type_of([Card("NVIDIA GeForce RTX 4090", 24564)], load_gpus())


def test_a_gpu_in_use_is_not_measured_on():
    busy = Card(holders=[Holding(7, 3 * GIB), Holding(8, None)])
    with pytest.raises(ConfigError, match=r"in use by 2 process\(es\), the largest with 3\.00 GiB"):
        gpus_at_hand(1, lambda count: [busy])
    idle = Card()
    assert gpus_at_hand(1, lambda count: [idle]) == [idle]


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["quantile", "calibrate", *words])
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


def test_without_a_gpu_the_command_says_what_is_missing(monkeypatch, capsys, tmp_path):
    def none(count):
        raise EngineError("cannot ask the GPU through NVML: Driver Not Loaded")

    monkeypatch.setattr("serve_app.node.nvml.assigned_gpus", none)
    out = tmp_path / "calibration.yaml"
    code, err = command(monkeypatch, capsys, "configs/local-gpu.yaml", "--out", str(out))
    assert code == 2
    assert "NVIDIA GPU" in err
    assert "GPU build" in err
    assert not out.exists()


def test_an_unknown_variant_is_refused(monkeypatch, capsys):
    code, err = command(monkeypatch, capsys, "configs/local-gpu.yaml", "--variant", "fp5")
    assert code == 2
    assert "no variant 'fp5'; it has: bf16, int8, gptq, awq" in err
