"""The evaluation's client over a real socket: the fake engine echoes prompts as vLLM does."""

import pytest

from serve_app.evaluate.endpoint import (
    NoPromptLogprobsError,
    RequestFailedError,
    open_endpoint,
    read_echo,
)


@pytest.fixture
def base_url(fake_server) -> str:
    return fake_server("m@a", "m@b", "m", ttft_ms=1, itl_ms=1, output_tokens=4)


async def test_prompt_logprobs_are_of_the_tokens_that_were_sent(base_url):
    endpoint = open_endpoint(base_url, "none", 20)
    ids = await endpoint.tokenize("m@a", "hello")
    assert await endpoint.detokenize("m@a", ids) == "hello"
    first, second = await endpoint.prompt_logprobs("m@a", [ids, ids[:3]], 20)
    assert (len(first.own), len(second.own)) == (len(ids) - 1, 2)
    assert first.own[:2] == second.own
    assert all(value <= 0 for value in first.own)
    for token, own, top in zip(ids[1:], first.own, first.top, strict=True):
        assert top[f"token_id:{token}"] == own
        assert 20 <= len(top) <= 21
    again = await endpoint.prompt_logprobs("m@a", [ids], 20)
    assert again[0] == first


async def test_an_engine_that_refuses_is_told_apart_from_one_that_fails(fake_server):
    refusing = fake_server("m", faults=[{"kind": "RefuseEcho"}])
    with pytest.raises(NoPromptLogprobsError, match="echo"):
        await open_endpoint(refusing, "none", 20).prompt_logprobs("m", [[1, 2]], 20)
    gone = open_endpoint("http://127.0.0.1:9", "none", 1)
    with pytest.raises(RequestFailedError) as caught:
        await gone.tokenize("m", "x")
    assert caught.value.is_gone


@pytest.mark.parametrize(
    ("logprobs", "says"),
    [
        (None, "no log-probabilities"),
        ({"token_logprobs": [-0.5], "tokens": ["a"]}, "need log-probabilities of 3"),
        ({"token_logprobs": [None, -1.0, None], "tokens": ["a"] * 3}, "have 1"),
        (
            {"token_logprobs": [None, -1.0, -1.0], "tokens": ["token_id:1"] * 3},
            "not those that were sent",
        ),
    ],
)
def test_an_echo_that_is_none_is_refused(logprobs, says):
    with pytest.raises(NoPromptLogprobsError, match=says):
        read_echo(logprobs, [1, 2, 3], with_top=True)


def test_an_echo_that_names_tokens_by_text_is_taken():
    found = read_echo(
        {
            "tokens": ["a", "b", "c"],
            "token_logprobs": [None, -1.0, -2.0],
            "top_logprobs": [None, {"b": -1.0}, {"x": -0.5, "c": -2.0}],
        },
        [1, 2],
        with_top=True,
    )
    assert found.own == (-1.0,)
    assert found.top == ({"b": -1.0},)
