"""What mirroring reads of a request, and what the candidate is sent."""

import json

import pytest

from serve_app.serving.http import SHADOW_KEY
from serve_app.serving.shadow_request import (
    Original,
    UnreadableRequestError,
    is_marked,
    read_request,
    without_pin,
)

SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v1/completions",
    "query_string": b"a=1",
    "headers": [(b"x-request-id", b"r"), (b"x-session-id", b"s")],
    "state": {"large": 1},
}


@pytest.mark.parametrize(
    ("fields", "greedy"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0, "n": 1, "seed": 5}, True),
        ({"temperature": 0, "n": 2}, False),
        ({"temperature": 0, "best_of": 2}, False),
        ({"temperature": 0.01}, False),
        ({"temperature": None}, False),
        ({"seed": 5}, False),
        ({}, False),
    ],
)
def test_greedy_is_temperature_0_said_aloud(fields, greedy):
    asked = read_request(json.dumps({"model": "m", **fields}).encode())
    assert asked.is_greedy is greedy
    assert asked.seed == fields.get("seed")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"temperature": "hot"}', b"\xff", b"[" * 100_000])
def test_what_cannot_be_read(body):
    with pytest.raises(UnreadableRequestError):
        read_request(body)


def test_a_pin_on_the_primary_is_taken_off_and_nothing_else_changes():
    body = b'{"prompt": "m@a \\u00e9", "model": "m@a", "temperature": 0, "x": [1e400, {"y": null}]}'
    sent = without_pin(body, read_request(body))
    assert sent == body.replace(b'"model": "m@a"', b'"model":"m"').replace(b": ", b":").replace(
        b", ", b","
    ).replace(b'[1e400,{"y":null}]', b'[1e400, {"y": null}]')


def test_a_body_without_a_pin_is_the_same_object():
    body = b'{"model": "m", "temperature": 0}'
    assert without_pin(body, read_request(body)) is body


def test_the_copy_is_marked_where_clients_cannot_and_the_clients_scope_stays():
    original = Original("r", "a", SCOPE, b"{}")
    sent = original.marked_scope()
    assert sent[SHADOW_KEY] is True
    assert {**sent} == {
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"a=1",
        "headers": SCOPE["headers"],
        SHADOW_KEY: True,
    }
    assert SHADOW_KEY not in SCOPE
    assert original.n_bytes == 2 + len(b"x-request-idr") + len(b"x-session-ids")


def test_a_marked_request_is_known_by_its_header():
    assert not is_marked(SCOPE)
    assert is_marked({**SCOPE, "headers": [(b"x-quantile-shadow", b"1")]})
