"""One mirrored request on its way: what is held of it, and how its primary ended."""

import asyncio
from typing import Protocol

from serve_app.config.shadow import ShadowConfig
from serve_app.routing.shadowing import Drop
from serve_app.serving.shadow_compare import End
from serve_app.serving.shadow_request import Asked, Original

_PIECE_BYTES = 64
"""What holding one piece takes beyond its content."""
_MIRROR_BYTES = 4096
"""What a mirrored request takes beyond its bytes: task, deadline, head."""


class Held:
    """Bytes that mirrored requests keep in memory, all together."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self.limit_bytes = 0


class Owner(Protocol):
    """Who mirrors; told from the primary's way, so both must be fast."""

    def begin(self, tap: "Tap") -> None:
        """The first bytes of the primary's answer are on their way."""

    def drop(self, tap: "Tap", reason: Drop) -> None:
        """The request is not mirrored after all, or its answers are not compared."""


class Tap:
    """Shown the primary's answer as it passes: `piece()` for each part, and `ended()` once.

    Bytes are kept by reference. Both methods take about a microsecond and never raise.
    """

    __slots__ = (
        "_held",
        "_held_bytes",
        "_is_begun",
        "_n_primary_bytes",
        "_owner",
        "asked",
        "candidate",
        "config",
        "has_slot",
        "is_over",
        "original",
        "primary",
        "primary_end",
        "task",
    )

    def __init__(self, owner: Owner, config: ShadowConfig, held: Held, original: Original) -> None:
        self.config = config
        self.original = original
        self.primary: list[bytes] = []
        self.candidate: list[bytes] = []
        self.asked = Asked()
        self.primary_end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        self.has_slot = False
        self.is_over = False
        self._owner = owner
        self._held = held
        self._held_bytes = 0
        self._is_begun = False
        self._n_primary_bytes = 0

    def piece(self, piece: bytes) -> None:
        """The next bytes of the primary's body."""
        if self.is_over or not piece:
            return
        # A view of a buffer that is used again would not last.
        self.primary.append(piece if type(piece) is bytes else bytes(piece))
        self._n_primary_bytes += len(piece)
        if self._n_primary_bytes > self.config.max_body_bytes:
            self._owner.drop(self, Drop.PRIMARY_TOO_LARGE)
        elif not self.hold(len(piece)):
            self._owner.drop(self, Drop.BYTES_HELD)
        elif not self._is_begun:
            self._is_begun = True
            self._owner.begin(self)

    def ended(self, status: int, whole: bool, ttft_s: float | None, duration_s: float) -> None:
        """The primary's answer is over; not `whole`: it broke off, or its client left."""
        if self.is_over or self.primary_end.done():
            return
        if not whole or status != 200 or not self._is_begun:
            self._owner.drop(self, Drop.PRIMARY_FAILED)
        else:
            self.primary_end.set_result(End(status, ttft_s, duration_s))

    def hold(self, n_bytes: int, extra_bytes: int = _PIECE_BYTES) -> bool:
        """Count bytes that are kept until the end. Whether all that is held is within its limit.

        A tap that is over keeps nothing: an answer may still bring bytes while its task is stopped.
        """
        if self.is_over:
            return False
        taken = n_bytes + extra_bytes
        self._held_bytes += taken
        self._held.n_bytes += taken
        return self._held.n_bytes <= self._held.limit_bytes

    def hold_request(self) -> bool:
        """Count the request itself."""
        return self.hold(self.original.n_bytes, _MIRROR_BYTES)

    def let_go(self) -> None:
        """Keep nothing any more. Done once, at the end."""
        self.is_over = True
        self._held.n_bytes -= self._held_bytes
        self._held_bytes = 0
        # Not cleared in place: a comparison that runs in its thread may read them.
        self.primary, self.candidate = [], []
