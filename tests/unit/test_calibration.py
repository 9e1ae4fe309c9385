import dataclasses
import datetime

import pytest

from serve_app.config.calibration import (
    CALIBRATION,
    CalibrationEntry,
    CalibrationTable,
    MeasuredSizes,
    append_entry,
    installed_vllm,
    load_calibration,
)
from serve_app.domain.errors import ConfigError, InvalidRunError
from serve_app.domain.units import GIB, MIB
from serve_app.planning.footprint import Calibration, EngineSizes
from serve_app.planning.measured import EngineMemory, combine, largest, measured_parts, usable_for

SIZES = EngineSizes(
    max_model_len=8192,
    max_num_seqs=64,
    max_num_batched_tokens=2048,
    max_cudagraph_capture_size=64,
)
MEMORY = EngineMemory(
    weights_bytes=5 * GIB,
    kv_cache_bytes=4 * GIB,
    torch_bytes=10 * GIB,
    graph_pool_bytes=GIB // 4,
    process_bytes=10 * GIB + 600 * MIB,
)
VALUES = Calibration(5 * GIB, GIB // 2, GIB // 4, 600 * MIB)


def entry(sizes=SIZES, values=VALUES, **changes):
    fields = {
        "checkpoint": "reference://gptq",
        "scheme": "gptq W4A16 g128",
        "gpu": "L4",
        "vllm": "0.32.0",
        "sizes": dataclasses.asdict(sizes),
        **dataclasses.asdict(values),
        "date": datetime.date(2026, 11, 20),
        "command": "quantile calibrate configs/local-gpu.yaml",
    }
    return CalibrationEntry.model_validate(fields | changes)


def test_the_parts_and_the_cache_sum_to_the_process():
    parts = measured_parts(MEMORY)
    total = sum(dataclasses.astuple(parts)) + MEMORY.kv_cache_bytes
    assert total == MEMORY.process_bytes
    assert parts.weights_bytes == 5 * GIB
    assert parts.activation_bytes == 10 * GIB - 5 * GIB - 4 * GIB - GIB // 4
    assert parts.context_bytes == 600 * MIB


@pytest.mark.parametrize(
    "changes",
    [
        {"process_bytes": 10 * GIB},
        {"torch_bytes": 9 * GIB},
        {"process_bytes": 0},
    ],
)
def test_numbers_that_do_not_add_up_are_no_measurement(changes):
    with pytest.raises(InvalidRunError, match="does not add up"):
        measured_parts(dataclasses.replace(MEMORY, **changes))


def test_the_largest_rank_counts_part_by_part():
    ranks = [Calibration(5, 1, 2, 9), Calibration(4, 3, 2, 8)]
    assert largest(ranks) == Calibration(5, 3, 2, 9)


@pytest.mark.parametrize(
    ("planned", "expected"),
    [
        ({}, VALUES),
        ({"max_num_seqs": 32, "max_model_len": 1024}, VALUES),
        ({"max_num_seqs": 65}, Calibration(weights_bytes=5 * GIB)),
        ({"max_num_batched_tokens": 4096}, Calibration(weights_bytes=5 * GIB)),
        ({"max_model_len": 8193}, Calibration(weights_bytes=5 * GIB)),
        ({"kv_dtype_bytes": 1}, Calibration(weights_bytes=5 * GIB)),
        ({"max_cudagraph_capture_size": 128}, Calibration(5 * GIB, GIB // 2)),
        ({"max_cudagraph_capture_size": 0}, Calibration(5 * GIB, GIB // 2)),
        ({"tensor_parallel_size": 2}, Calibration()),
        ({"activation_dtype_bytes": 4}, Calibration()),
    ],
)
def test_a_value_holds_only_at_sizes_that_were_covered(planned, expected):
    assert usable_for(dataclasses.replace(SIZES, **planned), SIZES, VALUES) == expected


def test_eager_runs_calibrate_eager_plans():
    eager = dataclasses.replace(SIZES, max_cudagraph_capture_size=0)
    values = dataclasses.replace(VALUES, cuda_graphs_bytes=0)
    assert usable_for(eager, eager, values) == values
    assert usable_for(SIZES, eager, values).cuda_graphs_bytes is None


def test_of_several_runs_the_closest_bound_counts():
    larger = Calibration(6, 30, 20, 9)
    assert combine([larger, Calibration(5, 10, None, 8)]) == Calibration(6, 10, 20, 8)
    assert combine([]) is None
    assert combine([Calibration()]) is None


def test_a_lookup_needs_the_same_checkpoint_gpu_and_version():
    lookup = CalibrationTable((entry(),))
    assert lookup("reference://gptq", "L4", "0.32.0", SIZES) == VALUES
    assert lookup("reference://awq", "L4", "0.32.0", SIZES) is None
    assert lookup("reference://gptq", "L40S", "0.32.0", SIZES) is None
    assert lookup("reference://gptq", "L4", "0.33.0", SIZES) is None


def test_entries_are_appended_and_comments_stay(tmp_path):
    file = tmp_path / "calibration.yaml"
    file.write_text("# mine")
    append_entry(file, entry())
    append_entry(file, entry(gpu="H200"))
    assert file.read_text().startswith("# mine\n- checkpoint: reference://gptq\n")
    assert load_calibration(file).entries == (entry(), entry(gpu="H200"))


def test_the_first_entry_makes_the_file(tmp_path):
    append_entry(tmp_path / "new.yaml", entry())
    assert load_calibration(tmp_path / "new.yaml").entries == (entry(),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b", "needs a list"),
        ("- 5", "entry 1 holds 5"),
        ("- {checkpoint: x}", "entry 1: scheme is required"),
        ("{", "not YAML"),
    ],
)
def test_a_wrong_file_is_refused_and_not_written_to(tmp_path, text, message):
    file = tmp_path / "calibration.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_calibration(file)
    with pytest.raises(ConfigError, match=message):
        append_entry(file, entry())
    assert file.read_text() == text


def test_unknown_sizes_are_refused(tmp_path):
    file = tmp_path / "calibration.yaml"
    append_entry(file, entry())
    file.write_text(file.read_text().replace("block_size", "block_sizes"))
    with pytest.raises(ConfigError, match="block_sizes is not a known key"):
        load_calibration(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the calibration"):
        load_calibration(tmp_path / "none.yaml")


def test_the_committed_file_is_sound():
    assert load_calibration() == load_calibration(CALIBRATION)


def test_sizes_have_the_planners_fields():
    """One that the planner gains must be measured, too."""
    planned = {field.name for field in dataclasses.fields(EngineSizes)}
    assert set(MeasuredSizes.model_fields) == planned


def test_the_version_is_a_version():
    assert installed_vllm()[0].isdigit()
    assert "+" not in installed_vllm()
