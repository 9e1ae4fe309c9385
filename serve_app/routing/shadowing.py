"""Which requests are mirrored, when mirroring pauses, and why a mirror is dropped. Pure."""

import math
from enum import StrEnum
from hashlib import blake2b

from serve_app.domain.units import BP_TOTAL

_MIRROR, _LOG = b"quantile mirror", b"quantile log"
_RANGE = 2**64


class Drop(StrEnum):
    """Why a request that was chosen to be mirrored was not, or its answers were not compared."""

    IS_MIRROR = "is_mirror"
    """It is a mirrored request itself."""
    REPEATED = "repeated"
    """A request of this id was mirrored a short time ago: a retry."""
    SAME_VARIANT = "same_variant"
    """The candidate itself served it."""
    BODY_TOO_LARGE = "body_too_large"
    PAUSED = "paused"
    """The candidate failed too often in a row."""
    QUEUE_FULL = "queue_full"
    BYTES_HELD = "bytes_held"
    """All mirrored requests together hold as many bytes as they may."""
    BACKLOG = "backlog"
    """Too many answers wait for their comparison."""
    SAMPLED = "sampled"
    """Its temperature is not 0, and only greedy ones are mirrored."""
    UNREADABLE_REQUEST = "unreadable_request"
    PRIMARY_FAILED = "primary_failed"
    """The primary's own answer was an error, broke off, or its client left."""
    PRIMARY_TOO_LARGE = "primary_too_large"
    PRIMARY_UNREADABLE = "primary_unreadable"
    SHADOW_BUSY = "shadow_busy"
    """The candidate's replicas are full."""
    SHADOW_DOWN = "shadow_down"
    """There is nobody to ask."""
    SHADOW_LATE = "shadow_late"
    SHADOW_CUT = "shadow_cut"
    """Its answer broke off."""
    SHADOW_REFUSED = "shadow_refused"
    """It answered 4xx to what the primary took."""
    SHADOW_FAILED = "shadow_failed"
    """It answered 5xx, or with an error inside of a stream."""
    SHADOW_TOO_LARGE = "shadow_too_large"
    SHADOW_UNREADABLE = "shadow_unreadable"
    RECONFIGURED = "reconfigured"
    """The router was given another candidate, or none, or ends."""
    BUG = "bug"
    """Our own code failed; the router's log says where."""


CANDIDATE_FAILED = frozenset(
    {
        Drop.SHADOW_BUSY,
        Drop.SHADOW_DOWN,
        Drop.SHADOW_LATE,
        Drop.SHADOW_CUT,
        Drop.SHADOW_FAILED,
        Drop.SHADOW_TOO_LARGE,
        Drop.SHADOW_UNREADABLE,
    }
)
"""What counts towards a pause."""


def is_mirrored(key: str, share_bp: int) -> bool:
    """Whether the request or session `key` is of the share that is mirrored.

    Every router replica decides alike. The draw is independent of `split.assign`'s, so each
    variant's traffic is mirrored by the same share; a larger share mirrors the same keys and more.
    """
    return _is_within(key, share_bp, _MIRROR)


def is_logged(request_id: str, sample_bp: int) -> bool:
    """Whether a mirrored request gets a line in the log; independent of `is_mirrored`."""
    return _is_within(request_id, sample_bp, _LOG)


def _is_within(key: str, share_bp: int, purpose: bytes) -> bool:
    if share_bp >= BP_TOTAL or share_bp <= 0:
        return share_bp > 0
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "big") * BP_TOTAL < share_bp * _RANGE


class Circuit:
    """Pauses mirroring for `pause_s` after `n_failures` in a row.

    After the pause one more failure is enough; an answer forgets them all. Clocks are the caller's.
    """

    def __init__(self, n_failures: int, pause_s: float) -> None:
        self._n_failures = n_failures
        self._pause_s = pause_s
        self._in_a_row = 0
        self._until_s = -math.inf

    def change(self, n_failures: int, pause_s: float) -> None:
        """Other limits, from the next failure on."""
        self._n_failures, self._pause_s = n_failures, pause_s

    def answered(self) -> None:
        """The candidate answered: also an answer of a request from before the pause ends it."""
        self._in_a_row = 0
        self._until_s = -math.inf

    def failed(self, now_s: float) -> bool:
        """The candidate failed. Whether a pause begins with this failure."""
        self._in_a_row += 1
        begins = self._in_a_row >= self._n_failures and not self.pause_left_s(now_s)
        if begins:
            self._until_s = now_s + self._pause_s
        return begins

    def pause_left_s(self, now_s: float) -> float:
        """Seconds until mirroring goes on; 0 while it does."""
        return max(0.0, self._until_s - now_s)
