"""What a SqueezeLLM checkpoint is told to be, and what the planner counts for it."""

import dataclasses
import json

import pytest

from serve_app.config.schema import EngineSettings
from serve_app.config.sizing import facts_as_held
from serve_app.domain.errors import CheckpointError
from serve_app.domain.quant import QuantMethod, QuantScheme
from serve_app.planning.facts import CheckpointFacts, Source
from serve_app.planning.weights import lookup_bytes, weights_from_shape, weights_from_tensors
from serve_app.store.inspect import inspect_checkpoint, read_checkpoint
from serve_app.store.source import LocalSource
from tests.fakes import checkpoints as made
from tests.unit.test_planning_shape import shape

DECLARED = {
    "quant_method": "squeezellm", "checkpoint_format": "quantile-1", "bits": 3,
    "outliers": True, "ignore": ["lm_head"],
}  # fmt: skip
PACKED = made.linear(
    qweight=("U8", [32, 6]),
    lookup_table=("F16", [32, 8]),
    outlier_counts=("I16", [32]),
    outlier_columns=("U8", [5]),
    outlier_values=("F16", [5]),
)
W3 = QuantScheme(QuantMethod.SQUEEZELLM, bits=3, container="squeezellm")
W4 = dataclasses.replace(W3, bits=4)


def test_the_container_tells_the_method(tmp_path):
    checkpoint = inspect_checkpoint(made.write_checkpoint(tmp_path, PACKED, DECLARED))
    assert checkpoint.scheme == W3
    assert checkpoint.recorded  # no record is needed to know


@pytest.mark.parametrize("change", [{"checkpoint_format": None}, {"bits": None}])
def test_the_papers_own_files_are_refused(tmp_path, change):
    with pytest.raises(CheckpointError, match="cannot use the quantization_config"):
        inspect_checkpoint(made.write_checkpoint(tmp_path, PACKED, {**DECLARED, **change}))


def test_headers_tell_what_the_engine_will_hold(tmp_path):
    source = LocalSource(made.write_checkpoint(tmp_path, PACKED, DECLARED))
    weights = weights_from_tensors(shape("llama-3.2-1b"), W3, read_checkpoint(source).tensors)
    # Codes as stored; per outlier four bytes for its place and two for its value, no counts.
    assert weights.linear_bytes == 32 * 6 + 5 * (4 + 2)
    assert weights.scale_bytes == 32 * 8 * 2
    assert weights.source is Source.HEADERS


@pytest.mark.parametrize(("scheme", "bits"), [(W3, 3.25), (W4, 4.28)])
def test_a_large_models_bits_per_weight(scheme, bits):
    """4,096 input channels and more: 0.22 bits for outliers, and 0.03 to 0.06 for the tables."""
    model = shape("llama-3.1-8b")
    plain = weights_from_shape(model, QuantScheme(QuantMethod.UNQUANTIZED, 16))
    squeezed = weights_from_shape(model, scheme)
    per_weight = (squeezed.linear_bytes + squeezed.scale_bytes) / plain.linear_bytes * 16
    assert per_weight == pytest.approx(bits, abs=0.03)


def test_looking_up_takes_a_bounded_part_of_a_gpu():
    assert lookup_bytes(W4) == 2**27
    assert lookup_bytes(QuantScheme(QuantMethod.GPTQ, 4)) == 0


def test_weights_dequantized_once_are_planned_dense():
    model = shape("llama-3.1-8b")
    facts = CheckpointFacts("m", model, W4, weights_from_shape(model, W4))

    def settings(**squeezellm: object) -> EngineSettings:
        additional = {"additional_config": {"squeezellm": squeezellm}}
        return EngineSettings(engine_args=additional if squeezellm else {})

    assert facts_as_held(settings(), facts) is facts
    assert facts_as_held(settings(dequantize_once=False), facts) is facts
    dense = QuantScheme(QuantMethod.UNQUANTIZED, 16)
    held = facts_as_held(settings(dequantize_once=True), facts)
    assert held.weights == weights_from_shape(model, dense)
    gptq = dataclasses.replace(facts, scheme=QuantScheme(QuantMethod.GPTQ, 4, group_size=128))
    assert facts_as_held(settings(dequantize_once=True), gptq) is gptq


def test_a_twin_is_told_by_its_original(tmp_path):
    scheme = {**dataclasses.asdict(W3), "method": "squeezellm"}
    record = {
        "method": "unquantized",
        "twin_of": {"variant": "w3", "scheme": scheme, "weight_bytes": 1234, "file_bytes": 1300},
    }
    folder = made.write_checkpoint(tmp_path, made.PLAIN)
    (folder / "quantile.json").write_text(json.dumps(record))
    twin = inspect_checkpoint(folder)
    # The engine loads dense weights, so that is what is planned; what is told is the original.
    assert twin.scheme.method is QuantMethod.UNQUANTIZED
    assert twin.weight_bytes > 1234
    assert (twin.told_bytes, twin.told_bits) == (1234, 3)
    assert twin.told_scheme == "squeezellm W3A16 (dense twin)"
    assert twin.describe() == "dense bfloat16 twin of squeezellm W3A16"
    record["twin_of"]["weight_bytes"] = None  # a GGUF's: not known is not 0
    (folder / "quantile.json").write_text(json.dumps(record))
    assert inspect_checkpoint(folder).told_bytes is None
    del record["twin_of"]["scheme"]
    (folder / "quantile.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="does not say what it is a twin of"):
        inspect_checkpoint(folder)


def test_what_is_no_twin_is_told_by_itself(tmp_path):
    checkpoint = inspect_checkpoint(made.write_checkpoint(tmp_path, PACKED, DECLARED))
    assert checkpoint.told_bytes == checkpoint.weight_bytes
    assert checkpoint.told_scheme == "squeezellm W3A16"
