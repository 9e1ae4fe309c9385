"""What a fake engine does, and when: timing, length and faults, as data.

A script is checked when it is made, so that a wrong test fails at its first line and not
by hanging. Durations are milliseconds (`_ms`) or seconds (`_s`) of engine time; instants are
seconds after the first request that the engine received.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from serve_app.domain.errors import ConfigError


class FailFirst(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """The first `n` generation requests get HTTP `status` in vLLM's error shape."""

    n: int
    status: int = 503

    def __post_init__(self) -> None:
        _require(self.n >= 1, "n >= 1", self.n)
        _require(400 <= self.status <= 599, "status in 400..599", self.status)


class FailEvery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Every `k`-th generation request (the k-th, the 2k-th, ...) gets HTTP `status`."""

    k: int
    status: int = 500

    def __post_init__(self) -> None:
        _require(self.k >= 1, "k >= 1", self.k)
        _require(400 <= self.status <= 599, "status in 400..599", self.status)


class HangBeforeFirstByte(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"
):
    """Every `every`-th generation request is never answered: it ends when its client leaves."""

    every: int = 1

    def __post_init__(self) -> None:
        _require(self.every >= 1, "every >= 1", self.every)


class DieMidStream(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Every `every`-th stream breaks after `after_tokens` tokens, without `[DONE]`."""

    after_tokens: int
    every: int = 1

    def __post_init__(self) -> None:
        _require(self.after_tokens >= 0, "after_tokens >= 0", self.after_tokens)
        _require(self.every >= 1, "every >= 1", self.every)


class Freeze(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """All generation stands still in `[start_s, start_s + duration_s)`, then goes on."""

    start_s: float
    duration_s: float

    def __post_init__(self) -> None:
        _require(self.start_s >= 0, "start_s >= 0", self.start_s)
        _require(self.duration_s > 0, "duration_s > 0", self.duration_s)


class SlowBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Bodies leave in pieces of `piece_bytes`, `delay_ms` apart: SSE events arrive split."""

    piece_bytes: int = 64
    delay_ms: float = 1.0

    def __post_init__(self) -> None:
        _require(self.piece_bytes >= 1, "piece_bytes >= 1", self.piece_bytes)
        _require(self.delay_ms >= 0, "delay_ms >= 0", self.delay_ms)


class RefuseHealth(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """`GET /health` answers `status`; generation is not touched."""

    status: int = 503

    def __post_init__(self) -> None:
        _require(400 <= self.status <= 599, "status in 400..599", self.status)


class RefuseEcho(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Completions that echo their prompt with log-probabilities get HTTP `status`."""

    status: int = 400

    def __post_init__(self) -> None:
        _require(400 <= self.status <= 599, "status in 400..599", self.status)


class OutOfMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """At the `at`-th generation request the process takes memory until `limit_mib` more are not
    to be had, and is killed, as by the kernel. With `own_process` that is the engine alone.
    """

    at: int = 1
    limit_mib: int = 64

    def __post_init__(self) -> None:
        _require(self.at >= 1, "at >= 1", self.at)
        _require(self.limit_mib >= 1, "limit_mib >= 1", self.limit_mib)


Fault = (
    FailFirst
    | FailEvery
    | HangBeforeFirstByte
    | DieMidStream
    | Freeze
    | SlowBody
    | RefuseHealth
    | RefuseEcho
    | OutOfMemory
)
"""What can go wrong; in a dict, `kind` is the class name (`{"kind": "FailFirst", "n": 2}`)."""


class FakeScript(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One engine's behaviour. Two engines with equal scripts answer alike.

    `ttft_ms` runs from the end of the request's body to the first token; `itl_ms` is the gap
    between tokens; `jitter` is the half-width of a uniform factor on both (0.2: 80 % to 120 %).
    `output_tokens` is where the model stops by itself (`ignore_eos` or `min_tokens` push it on,
    `max_tokens` cuts it short). `max_num_seqs` bounds the requests that run together, as in vLLM;
    None is no bound. `max_model_len` counts prompt and output tokens; a token of the prompt is
    one UTF-8 byte. `seed` drives jitter and the words of the answer. With `own_process` the engine
    runs beside its replica and not in it (`serve_app.engines.fake_child`).
    """

    ttft_ms: float = 50.0
    itl_ms: float = 10.0
    output_tokens: int = 64
    jitter: float = 0.0
    seed: int = 0
    max_model_len: int = 32_768
    max_num_seqs: int | None = None
    own_process: bool = False
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        """Raise ConfigError for a value out of range."""
        _require(self.ttft_ms >= 0, "ttft_ms >= 0", self.ttft_ms)
        _require(self.itl_ms >= 0, "itl_ms >= 0", self.itl_ms)
        _require(self.output_tokens >= 1, "output_tokens >= 1", self.output_tokens)
        _require(0 <= self.jitter < 1, "0 <= jitter < 1", self.jitter)
        _require(self.max_model_len >= 2, "max_model_len >= 2", self.max_model_len)
        if self.max_num_seqs is not None:
            _require(self.max_num_seqs >= 1, "max_num_seqs >= 1 or null", self.max_num_seqs)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "FakeScript":
        """Build from plain data. Raises ConfigError for an unknown key, type or range."""
        try:
            return msgspec.convert(dict(raw), cls)
        except msgspec.ValidationError as error:
            raise ConfigError(f"fake engine script: {error}") from error

    def failure_status(self, ordinal: int) -> int | None:
        """HTTP status with which the `ordinal`-th generation request (from 1) fails, if it does."""
        for fault in self.faults:
            if isinstance(fault, FailFirst) and ordinal <= fault.n:
                return fault.status
            if isinstance(fault, FailEvery) and ordinal % fault.k == 0:
                return fault.status
        return None

    def hangs(self, ordinal: int) -> bool:
        """Whether the `ordinal`-th generation request is never answered."""
        return any(
            isinstance(fault, HangBeforeFirstByte) and ordinal % fault.every == 0
            for fault in self.faults
        )

    def out_of_memory(self, ordinal: int) -> int | None:
        """MiB that the `ordinal`-th generation request may take before it ends the process."""
        for fault in self.faults:
            if isinstance(fault, OutOfMemory) and ordinal >= fault.at:
                return fault.limit_mib
        return None

    def dies_after(self, ordinal: int) -> int | None:
        """Tokens after which the `ordinal`-th stream breaks; None if it does not."""
        for fault in self.faults:
            if isinstance(fault, DieMidStream) and ordinal % fault.every == 0:
                return fault.after_tokens
        return None

    def slow_body(self) -> SlowBody | None:
        """How bodies are slowed; None if they leave whole."""
        return next((fault for fault in self.faults if isinstance(fault, SlowBody)), None)

    def health_status(self) -> int:
        """HTTP status of `GET /health`."""
        for fault in self.faults:
            if isinstance(fault, RefuseHealth):
                return fault.status
        return 200

    def echo_status(self) -> int:
        """HTTP status of a completion that echoes its prompt with log-probabilities."""
        refusals = (fault.status for fault in self.faults if isinstance(fault, RefuseEcho))
        return next(refusals, 200)

    def work_end(self, start_s: float, work_s: float) -> float:
        """When work of `work_s` begun at `start_s` ends, if no work is done in a freeze."""
        end_s = start_s + work_s
        freezes = [fault for fault in self.faults if isinstance(fault, Freeze)]
        for freeze in sorted(freezes, key=lambda each: each.start_s):
            freeze_end_s = freeze.start_s + freeze.duration_s
            if freeze.start_s <= end_s and start_s < freeze_end_s:
                end_s += freeze_end_s - max(start_s, freeze.start_s)
        return end_s


def _require(holds: bool, need: str, have: object) -> None:
    if not holds:
        raise ConfigError(f"fake engine script: need {need}, have {have!r}")
