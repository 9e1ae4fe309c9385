"""What hypothesis draws for the router: bodies of any shape, and requests of any form."""

import json
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

from tests.fakes.fuzz_cases import ALIAS, KEY, PATHS, Case
from tests.fakes.wire import Talk, request

_TEXT = st.text(max_size=40)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)
_MODELS = st.sampled_from([ALIAS, f"{ALIAS}@a", f"{ALIAS}@b", f"{ALIAS}@slow", f"{ALIAS}@", "@"])
_NEARLY_GOOD = st.fixed_dictionaries(
    {"model": _MODELS | JSON_VALUES},
    optional={
        "messages": st.lists(
            st.fixed_dictionaries({"role": _TEXT, "content": _TEXT}) | JSON_VALUES, max_size=3
        ),
        "prompt": _TEXT | JSON_VALUES,
        "input": _TEXT | JSON_VALUES,
        "tokens": st.lists(st.integers(0, 300), max_size=5) | JSON_VALUES,
        "user": _TEXT | JSON_VALUES,
        "stream": st.booleans() | JSON_VALUES,
        "max_tokens": st.integers(-1, 8) | JSON_VALUES,
        "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}) | JSON_VALUES,
    },
)
_PATHS = (
    st.sampled_from([*PATHS, "/v1/models", "/status", "/healthz", "/readyz", "/openapi.json"])
    | st.text(max_size=30).map(lambda text: "/" + quote(text))
    | st.text(max_size=20).map(lambda text: "/v1/models/" + quote(text, safe="@"))
    | st.sampled_from(
        ["/variants/a/v1/models", "//", "/v1//chat/completions", "/v1/../status", "*"]
    )
)
_QUERIES = st.just("") | st.text(max_size=20).map(lambda text: "?" + quote(text, safe="=&?"))
_METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"])
_HEADER_NAMES = st.sampled_from(
    [
        "x-session-id",
        "x-request-id",
        "x-variant",
        "x-route-reason",
        "x-quantile-internal",
        "x-quantile-shadow",
        "x-request-timeout-seconds",
        "x-request-timeout-ms",
        "x-cohort",
        "authorization",
        "content-type",
        "accept-encoding",
        "cookie",
        "te",
        "expect",
        "keep-alive",
        "proxy-authorization",
        "traceparent",
    ]
) | st.text("abcdefghijklmnopqrstuvwxyz!#$%&'*+-.^_`|~0123456789", min_size=1, max_size=20).map(
    "z-{}".format
)
# Visible bytes, spaces, tabs and the upper half, as RFC 9110 section 5.5 lets them pass.
_HEADER_VALUES = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60
) | st.sampled_from(
    ["Bearer sk-1", f"Bearer {KEY}", "100-continue", "0.001", "-1", "nan", "1e999", "none", "a"]
)


def _encoded(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@st.composite
def bodies(draw: st.DrawFn) -> Case:
    """A relayed path with a body of JSON that is nearly good, or any JSON, or any bytes."""
    body = draw(_NEARLY_GOOD.map(_encoded) | JSON_VALUES.map(_encoded) | st.binary(max_size=60))
    raw = request(target=draw(st.sampled_from(PATHS)), body=body)
    return Case("hypothesis bodies", Talk((raw,)))


@st.composite
def messages(draw: st.DrawFn) -> Case:
    """Any method, path, query and headers, with a good body or another."""
    method = draw(_METHODS)
    headers = draw(st.lists(st.tuples(_HEADER_NAMES, _HEADER_VALUES), max_size=8))
    body = draw(_NEARLY_GOOD.map(_encoded) | st.binary(max_size=40) | st.none())
    raw = request(method, draw(_PATHS) + draw(_QUERIES), body, headers)
    return Case("hypothesis messages", Talk((raw,), is_head=method == "HEAD"))


@st.composite
def raw_bytes(draw: st.DrawFn) -> Case:
    """A good request with pieces of it replaced: hardly HTTP any more."""
    raw = bytearray(request(body=_encoded(draw(_NEARLY_GOOD))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 6))] = draw(st.binary(max_size=6))
    return Case("hypothesis bytes", Talk((bytes(raw),), half_closes=True), well_formed=False)
