"""What is decided of llama.cpp as an engine without starting it."""

import pytest

from serve_app.config.parse import parse
from serve_app.config.schema import EngineSettings, VariantArgs
from serve_app.domain.errors import CheckpointError, ConfigError, MalformedRequestError
from serve_app.engines import llamacpp_lib
from serve_app.engines.engine import EngineSpec, prepare_engine
from serve_app.engines.llamacpp_echo import echoed
from serve_app.engines.llamacpp_process import Answer, Entry
from serve_app.planning.llamacpp import llamacpp_bytes
from serve_app.reference.build import CHECKPOINT
from serve_app.reference.locate import resolve
from serve_app.store.facts import checkpoint_facts
from tests.fakes.gguf_files import write_gguf

ANSWER = Answer(
    tokens=[1, 7, 9],
    texts=["<u>", "he", "llo"],
    logprobs=[-1.5, -0.25],
    top=[
        [Entry(8, "x", -0.5), Entry(7, "he", -1.5)],
        [Entry(9, "llo", -0.25), Entry(2, "y", -3.0)],
        [Entry(4, "!", -0.125), Entry(5, "?", -2.5)],
    ],
)


async def answer(_question):
    return ANSWER


async def test_an_echo_has_the_shape_that_vllm_gives():
    body = {"prompt": [1, 7, 9], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    reply = await echoed(body, "m@a", answer)
    choice = reply["choices"][0]
    assert choice["text"] == "<u>hello!"
    assert choice["logprobs"] == {
        "tokens": ["<u>", "he", "llo", "!"],
        "token_logprobs": [None, -1.5, -0.25, -0.125],
        "top_logprobs": [None, {"he": -1.5, "x": -0.5}, {"llo": -0.25}, {"!": -0.125}],
        "text_offset": [0, 3, 5, 8],
    }
    assert reply["usage"]["prompt_tokens"] == 3 and reply["usage"]["completion_tokens"] == 1


async def test_an_echo_may_name_tokens_by_id_and_generate_nothing():
    body = {"prompt": "x", "max_tokens": 0, "logprobs": 2, "return_tokens_as_token_ids": True}
    choice = (await echoed(body, "m", answer))["choices"][0]
    assert choice["logprobs"]["tokens"] == ["token_id:1", "token_id:7", "token_id:9"]
    assert choice["logprobs"]["top_logprobs"][1] == {"token_id:7": -1.5, "token_id:8": -0.5}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_tokens": 5}, "max_tokens to"),
        ({"max_tokens": 1, "temperature": 1}, "temperature to 0"),
        ({"max_tokens": 0, "stream": True}, "leave out `stream`"),
        ({"max_tokens": 0, "logprobs": 21}, "need 0 to 20"),
        ({"max_tokens": 0, "logprobs": True}, "whole number"),
        ({"max_tokens": 0, "prompt": [[1], "a", 3]}, "`prompt` is"),
    ],
)
async def test_an_echo_that_cannot_be_given_says_what_can(wrong, says):
    with pytest.raises(MalformedRequestError, match=says):
        await echoed({"prompt": [1]} | wrong, "m", answer)


def test_settings_that_llama_cpp_does_not_read_are_refused():
    with pytest.raises(ConfigError, match="kv_cache_dtype: not read with kind: llamacpp"):
        parse(EngineSettings, {"kind": "llamacpp", "kv_cache_dtype": "fp8"}, where="t")
    assert parse(EngineSettings, {"kind": "llamacpp", "threads": 1}, where="t").threads == 1


def test_a_checkpoint_may_be_a_gguf_or_a_folder_with_one(tmp_path):
    file = write_gguf(tmp_path / "m.gguf")
    assert resolve(str(file)) == file and resolve(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match=r"config\.json or a \.gguf"):
        resolve(str(tmp_path / "elsewhere"))


def test_before_it_starts_the_file_needs_a_tokenizer_and_the_context_must_fit(tmp_path):
    spec = EngineSpec(("m",), tmp_path, EngineSettings(kind="llamacpp"))
    write_gguf(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        prepare_engine(spec)
    tokens = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"]}
    write_gguf(tmp_path / "m.gguf", plain=tokens)
    prepare_engine(spec)
    longer = EngineSettings(kind="llamacpp", max_model_len=8192)
    with pytest.raises(ConfigError, match="max_model_len is 8192"):
        prepare_engine(EngineSpec(("m",), tmp_path, longer))


@pytest.mark.parametrize("have", [None, "2025.1.1"])
def test_without_the_one_version_of_the_wheel_it_says_what_to_install(monkeypatch, have):
    monkeypatch.setattr(llamacpp_lib, "installed_version", lambda: have)
    with pytest.raises(ConfigError, match=r"quantile-serve\[llamacpp\]"):
        llamacpp_lib.require_wheel()


def test_memory_follows_slots_and_context():
    facts = checkpoint_facts(str(CHECKPOINT))
    one, nine = llamacpp_bytes(facts, 512, 1), llamacpp_bytes(facts, 512, 9)
    per_token = 2 * 2 * 64 * 2 * 3  # key and value, heads, their size, bytes, layers
    assert nine - one == 8 * 512 * per_token


def test_a_variant_file_may_name_the_engine():
    values = {"model": "m", "name": "a", "checkpoint": "x", "method": "gguf"}
    args = parse(VariantArgs, values | {"engine": {"kind": "llamacpp"}}, where="t")
    assert args.engine.kind == "llamacpp"
