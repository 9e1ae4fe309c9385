"""Engine settings through the parser of the vLLM that is installed: no engine is started."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: its own parser is what is tested here")

from serve_app.config.schema import EngineSettings
from serve_app.domain.errors import ConfigError
from serve_app.engines.engine import EngineSpec
from serve_app.engines.vllm_args import OWNED, server_arguments


def arguments(settings: dict[str, Any] | None = None, **engine_args: Any):
    chosen = EngineSettings(**(settings or {}), engine_args=engine_args)
    folder = Path("/models/with space/and_underscore")
    return server_arguments(EngineSpec(("m@awq", "m"), folder, chosen))


def refusal(settings: dict[str, Any] | None = None, **engine_args: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        arguments(settings, **engine_args)
    return str(caught.value)


def test_names_and_checkpoint_are_ours():
    parsed = arguments()
    assert parsed.model == "/models/with space/and_underscore"
    assert parsed.served_model_name == ["m@awq", "m"]


def test_typed_settings_reach_vllm():
    settings = {
        "dtype": "float16",
        "max_model_len": 1024,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 2048,
        "kv_cache_memory_bytes": 64 << 20,
        "gpu_memory_utilization": 0.25,
        "max_cudagraph_capture_size": 16,
        "tensor_parallel_size": 2,
        "enforce_eager": True,
    }
    parsed = arguments(settings)
    assert {name: getattr(parsed, name) for name in settings} == settings


def test_what_is_not_set_is_left_to_vllm():
    defaults, ours = arguments(), arguments({"threads": 1, "kind": "vllm"})
    assert vars(defaults) == vars(ours)
    assert defaults.max_num_seqs is None
    assert defaults.enforce_eager is False


def test_where_traces_go_reaches_vllm_as_its_exporter_takes_it(monkeypatch):
    assert arguments().otlp_traces_endpoint is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")
    assert arguments().otlp_traces_endpoint == "http://c:4318"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    assert arguments().otlp_traces_endpoint == "http://c:4318/v1/traces"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enable_prefix_caching", True),
        ("enable_prefix_caching", False),
        ("seed", 7),
        ("seed", -1),
        ("chat_template", "{{ messages }}"),
        ("tokenizer", "/path/with_underscore"),
        ("hf_overrides", {"rope_theta": 1e6, "a_b": [1, {"c_d": None}]}),
        ("allowed_origins", ["https://a", "https://b"]),
        ("middleware", ["a.b.C", "d.e.F"]),
        ("ignore_patterns", ["original/**", "*.bin"]),
        ("disable_log_stats", True),
        ("disable_log_stats", False),
        ("generation_config", "vllm"),
    ],
)
def test_other_arguments_pass_with_their_values(name, value):
    parsed = getattr(arguments(None, **{name: value}), name)
    assert parsed == value


def test_null_leaves_the_choice_to_vllm():
    assert arguments(None, seed=None, hf_overrides=None) == arguments()


def test_a_list_takes_nothing_of_what_follows_it():
    parsed = arguments(None, ignore_patterns=["*.bin"], seed=3, enable_prefix_caching=True)
    assert (parsed.ignore_patterns, parsed.seed) == (["*.bin"], 3)
    assert parsed.model.endswith("and_underscore")


def test_an_unknown_name_is_refused_with_vllms_names():
    text = refusal(None, max_modle_len=3)
    assert "engine_args.max_modle_len is not an argument of vLLM's server" in text
    for known in ("enable_prefix_caching", "quantization", "speculative_config"):
        assert known in text
    for not_offered in ("served_model_name", "max_model_len"):
        assert f" {not_offered}," not in text


@pytest.mark.parametrize("name", ["Seed", "enable-prefix-caching", "no_enable_prefix_caching", ""])
def test_a_name_must_be_exact(name):
    assert "is not an argument" in refusal(None, **{name: 1})


@pytest.mark.parametrize("name", OWNED)
def test_an_argument_that_quantile_sets_is_refused_with_what_to_set(name):
    text = refusal(None, **{name: "x"})
    assert f"engine_args.{name} is set by QuanTile" in text
    assert OWNED[name] in text


@pytest.mark.parametrize("name", ["max_model_len", "dtype", "enforce_eager"])
def test_a_typed_argument_has_its_own_place(name):
    assert f"set engine.{name}" in refusal(None, **{name: 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "seven"),
        ("seed", True),
        ("block_size", "many"),
        ("enable_prefix_caching", "yes"),
        ("compilation_config", "not json"),
        ("ignore_patterns", []),
        ("quantization", ["awq", "gptq"]),
    ],
)
def test_a_value_of_another_type_is_an_error_and_not_the_end_of_the_process(name, value):
    assert "vLLM refuses the engine arguments" in refusal(None, **{name: value})
