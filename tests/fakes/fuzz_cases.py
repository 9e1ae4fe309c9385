"""Requests to a router as nobody should send them: families of seeded conversations.

Each family is a function of a random source and of the case's number. What hypothesis draws is in
`fuzz_strategies`.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.fakes.wire import Talk, request

ALIAS = "m"
MAX_BODY_BYTES = 1 << 20
CHAT = "/v1/chat/completions"
PATHS = (
    CHAT,
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/tokenize",
    "/detokenize",
)
KEY = "qtl-" + "k" * 43
"""An API key that is good at the router that is fuzzed."""
JSON_TYPE = ("content-type", "application/json")


@dataclass(frozen=True)
class Case:
    """One conversation of a family. `well_formed`: it is HTTP/1.1, so the router gets it."""

    family: str
    talk: Talk
    well_formed: bool = True
    n_requests: int = 1
    expects: frozenset[int] | None = None
    """Statuses that every answer must have; None: any that the judge lets pass."""


def chat(model: Any = ALIAS, **more: Any) -> bytes:
    """The body of a good chat request."""
    message = {"role": "user", "content": "hi"}
    return json.dumps({"model": model, "messages": [message], "max_tokens": 3, **more}).encode()


def _case(family: str, *pieces: bytes | float, **more: Any) -> Case:
    of_talk = {key: more.pop(key) for key in ("leaves", "half_closes", "is_head") if key in more}
    n = more.get("n_requests", 1)
    return Case(family, Talk(pieces, n_answers=n, **of_talk), **more)


def canary(rng: random.Random, number: int) -> Case:
    """A good request: whatever else is going on, it is served."""
    headers = [JSON_TYPE, ("x-session-id", f"canary-{number}")]
    if rng.random() < 0.5:
        headers.append(("authorization", f"Bearer {KEY}"))
    body = chat(stream=bool(number % 2))
    return _case("canary", request(body=body, headers=headers), expects=frozenset({200}))


def model_name(rng: random.Random, number: int) -> Case:
    """A model name that was never used before, and a session and a request id too."""
    odd = rng.choice(["", "é", "模", "🦆", '"', "\\", "\u0000", "{}", "\u202e", "%s", "../"])
    name = rng.choice(
        [f"{odd}model-{number}", f"{ALIAS}@{odd}{number}", f"{ALIAS}-{number}@a", f"{number}{odd}"]
    )
    if rng.random() < 0.02:
        name += "n" * rng.choice([200, 5_000, 100_000])
    headers = [JSON_TYPE, ("x-session-id", f"s{number}"), ("x-request-id", f"r{number}")]
    body = chat(name, user=f"u{number}")
    raw = request(target=rng.choice(PATHS), body=body, headers=headers)
    return _case("model name", raw, expects=frozenset({404}))


def session(rng: random.Random, number: int) -> Case:
    """A session that was never seen before, asking any variant."""
    pin = rng.choice(["", "", "", "@a", "@b", "@slow", "@failing", "@busy", "@dying"])
    body = chat(ALIAS + pin, user=f"user-{number}", stream=rng.random() < 0.5)
    return _case("session", request(body=body, headers=[JSON_TYPE, ("x-request-id", f"q{number}")]))


def header_flood(rng: random.Random, number: int) -> Case:
    """Many headers, or long ones."""
    n, size = rng.choice([(10, 10), (90, 20), (500, 20), (3000, 5), (1, 15_000), (1, 60_000)])
    headers = [(f"x-flood-{number}-{i}", "v" * size) for i in range(n)]
    if rng.random() < 0.3:
        name = rng.choice(["x-session-id", "x-request-id", "authorization", "cookie"])
        headers = [(name, f"{number}" + "s" * size)] * min(n, 50)
    return _case("header flood", request(body=chat(), headers=[JSON_TYPE, *headers]))


def just_too_large(rng: random.Random, number: int) -> Case:
    """Headers that fit the ingress on the way in, and may not on the router's way to a variant."""
    if rng.random() < 0.5:
        headers = [(f"x-near-{i}", str(number)) for i in range(rng.randrange(88, 101))]
    else:
        headers = [("x-near", "v" * rng.randrange(14_400, 15_360))]
    raw = request(body=chat(), headers=[JSON_TYPE, *headers])
    return _case("headers at the limit", raw, expects=frozenset({200, 400, 431}))


def impatient(rng: random.Random, number: int) -> Case:
    """A client that gives hardly any time, which is not the variant's fault."""
    limit_ms = rng.choice(["1", "1", "2", "5", "50"])
    headers = [JSON_TYPE, ("x-request-timeout-ms", limit_ms), ("x-session-id", f"i{number}")]
    body = chat(stream=rng.random() < 0.5, max_tokens=rng.choice([1, 50]))
    return _case("impatient", request(body=body, headers=headers), expects=frozenset({200, 504}))


def stalled_body(rng: random.Random, number: int) -> Case:
    """A body that never comes to its end, of a client that waits for its answer all the same."""
    raw = request(body=chat(pad="x" * 50), headers=[JSON_TYPE])
    cut = rng.randrange(len(raw) - 60, len(raw))
    return _case("stalled body", raw[:cut], expects=frozenset({408}))


def slow_body(rng: random.Random, number: int) -> Case:
    """A body in small pieces with pauses; some never come to their end."""
    raw = request(body=chat(pad="x" * rng.randrange(200)), headers=[JSON_TYPE])
    cuts = sorted(rng.sample(range(1, len(raw)), rng.randrange(1, 6)))
    pieces: list[bytes | float] = []
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        pieces += [raw[start:end], rng.choice([0.0, 0.001, 0.01])]
    if rng.random() < 0.3:
        return _case("slow body", *pieces[:-2], 0.05, leaves=True)
    return _case("slow body", *pieces)


def broken_json(rng: random.Random, number: int) -> Case:
    """A good body with bytes changed, cut off, or doubled; or nested without end."""
    kind = rng.randrange(6)
    body = bytearray(chat(user="é" * 3))
    if kind == 0:
        for _ in range(rng.randrange(1, 8)):
            body[rng.randrange(len(body))] = rng.randrange(256)
    elif kind == 1:
        del body[rng.randrange(len(body)) :]
    elif kind == 2:
        body = bytearray(rng.randbytes(rng.randrange(200)))
    elif kind == 3:
        depth = rng.choice([10, 1000, 100_000])
        left, right = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
        body = bytearray(left * depth + b"1" + right * (depth if rng.random() < 0.5 else 0))
    elif kind == 4:
        depth = rng.choice([10, 1000, 50_000])
        body = bytearray(b'{"model": "m", "x": ' + b"[" * depth + b"]" * depth + b"}")
    else:
        escape = rng.choice(
            [b"\\ud800", b"\\udc00\\ud800", b"\\u0000", b"\\x", b"\xff", b"\xed\xa0\x80"]
        )
        field = rng.choice([b"model", b"user"])
        body = bytearray(b'{"model": "m", "' + field + b'": "' + escape + b'"}')
    return _case(
        "broken JSON", request(target=rng.choice(PATHS), body=bytes(body), headers=[JSON_TYPE])
    )


def wrong_length(rng: random.Random, number: int) -> Case:
    """A body that is not as long as it says, or says it twice, or in two ways."""
    body, length = chat(), len(chat())
    wrong = [
        (b"content-length: %d\r\n" % (length + rng.randrange(1, 50)), body),
        (b"content-length: %d\r\n" % rng.randrange(length), body),
        (b"content-length: -1\r\n", body),
        (b"content-length: 1e3\r\n", body),
        (b"content-length: %d\r\n" % (1 << 64), body),
        (b"content-length: %d\r\ncontent-length: 3\r\n" % length, body),
        (b"content-length: %d\r\ntransfer-encoding: chunked\r\n" % length, _chunked(body)),
        (b"transfer-encoding: chunked\r\n", body),
        (b"transfer-encoding: chunked\r\n", b"ffffffffffffffffff\r\n" + body),
        (b"transfer-encoding: chunked\r\n", _chunked(body)[:-5]),
        (b"transfer-encoding: gzip, chunked\r\n", _chunked(body)),
        (b"transfer-encoding: chunked, identity\r\n", _chunked(body)),
        (b"", body),
    ]
    fields, raw = rng.choice(wrong)
    head = b"POST %b HTTP/1.1\r\nhost: fuzz\r\n" % CHAT.encode()
    return _case("wrong length", head + fields + b"\r\n" + raw, half_closes=True, well_formed=False)


def chunked_body(rng: random.Random, number: int) -> Case:
    """A good body in chunks, with extensions and trailers, as HTTP/1.1 allows."""
    body = chat(user=f"chunked-{number}")
    cuts = sorted(rng.sample(range(1, len(body)), rng.randrange(0, 5)))
    pieces = [body[i:j] for i, j in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    trailer = rng.choice([b"", b"x-trailer: 1\r\n", b"x-variant: evil\r\n"])
    fields = [JSON_TYPE, ("transfer-encoding", "chunked")]
    if rng.random() < 0.3:
        fields.append(("expect", "100-continue"))
    raw = request(body=None, headers=fields)
    framed = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return _case(
        "chunked", raw, framed + b"0\r\n" + trailer + b"\r\n", expects=frozenset({200, 429})
    )


def oversized(rng: random.Random, number: int) -> Case:
    """A body above the limit, announced or not."""
    size = MAX_BODY_BYTES + rng.choice([1, 1000, MAX_BODY_BYTES])
    body = b'{"model": "m", "x": "' + b"y" * size + b'"}'
    if rng.random() < 0.5:
        return _case("oversized", request(body=body), expects=frozenset({413}))
    raw = request(body=None, headers=[("transfer-encoding", "chunked")])
    return _case("oversized", raw, _chunked(body), expects=frozenset({413}))


def pipelined(rng: random.Random, number: int) -> Case:
    """Several requests at once: their answers come in their order, each its own."""
    n = rng.randrange(2, 6)
    some = [
        request(body=chat(user=f"p{number}-{i}"), headers=[JSON_TYPE])
        if rng.random() < 0.7
        else request("GET", rng.choice(["/v1/models", "/healthz", "/nothing"]), None)
        for i in range(n)
    ]
    if rng.random() < 0.3:
        return _case("pipelined", b"".join(some), leaves=True, n_requests=n)
    return _case("pipelined", b"".join(some), n_requests=n)


def leaving(rng: random.Random, number: int) -> Case:
    """A client that is gone: in the middle of its request, or of its answer."""
    pin = rng.choice(["", "@slow", "@a"])
    raw = request(body=chat(ALIAS + pin, stream=True, max_tokens=200), headers=[JSON_TYPE])
    cut = rng.randrange(1, len(raw) + 1) if rng.random() < 0.5 else len(raw)
    return _case("leaving", raw[:cut], rng.choice([0.0, 0.002, 0.02]), leaves=True)


FAMILIES: Mapping[str, tuple[Callable[[random.Random, int], Case], float]] = {
    "model name": (model_name, 0.50),
    "canary": (canary, 0.04),
    "session": (session, 0.05),
    "impatient": (impatient, 0.015),
    "header flood": (header_flood, 0.02),
    "headers at the limit": (just_too_large, 0.01),
    "slow body": (slow_body, 0.019),
    "stalled body": (stalled_body, 0.001),
    "broken JSON": (broken_json, 0.04),
    "wrong length": (wrong_length, 0.02),
    "chunked": (chunked_body, 0.01),
    "oversized": (oversized, 0.005),
    "pipelined": (pipelined, 0.015),
    "leaving": (leaving, 0.03),
}
"""What makes a case, and the family's share of all requests; the rest is hypothesis's and
schemathesis's."""


def cases(n_total: int, seed: int, first_number: int) -> list[Case]:
    """The seeded cases of `n_total` requests, shuffled; numbers begin at `first_number`."""
    rng = random.Random(seed)
    made: list[Case] = []
    number = first_number
    for make, share in FAMILIES.values():
        left = max(1, round(n_total * share))
        while left > 0:
            case = make(rng, number)
            made.append(case)
            left -= case.n_requests
            number += 1
    rng.shuffle(made)
    return made


def _chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
