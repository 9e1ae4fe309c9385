"""One public name as one router replica serves it: its rules, its ladder, its shadow."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from serve_app.config.schema import AliasConfig
from serve_app.domain.observation import Observation
from serve_app.domain.traffic import AliasRules
from serve_app.serving.ladder_loop import LadderLoop
from serve_app.serving.relay import Relay
from serve_app.serving.shadow import Shadow
from serve_app.telemetry.meters import Meters


class ServedAlias:
    """Make it in the loop that serves requests, and `close` it."""

    def __init__(
        self, name: str, rules: AliasRules, relay: Relay, meters: Meters, clock: Callable[[], float]
    ) -> None:
        self.name = name
        self.rules = rules
        self.ladder = LadderLoop(clock, meters.ladder(name))
        self.shadow = Shadow(relay, meters.shadow)

    def configure(self, rules: AliasRules, config: AliasConfig) -> None:
        """Follow `config`, whose rules are `rules`, from the next request on."""
        self.rules = rules
        self.ladder.configure(config.ladder)
        self.shadow.configure(config.shadow)

    def close(self) -> None:
        """Stop the ladder's loop, and drop what is mirrored."""
        self.ladder.close()
        self.shadow.close()

    def view(self) -> dict[str, Any]:
        """Its rules and its state as JSON; of this replica."""
        split = self.rules.split
        return {
            "split": dict(split.shares_bp),
            "fallback": split.fallback,
            "cohorts": {
                each.name: {"split": each.shares_bp, "floor": each.floor}
                for each in self.rules.cohorts
            },
            "ladder": self.ladder.view(),
            "shadow": self.shadow.view(),
        }


class Flight:
    """One request on its way, as every ladder sees it: a variant may be a rung of several.

    It is counted in `in_flight` while it is with a variant.
    """

    __slots__ = ("_in_flight", "_ladders", "_variant")

    def __init__(self, ladders: Sequence[LadderLoop], in_flight: Counter[str]) -> None:
        self._ladders = ladders
        self._in_flight = in_flight
        self._variant: str | None = None

    def to(self, variant: str) -> None:
        """It is sent to `variant`, and no longer to the one before."""
        if variant != self._variant:
            self.over(None)
            self._variant = variant
            self._in_flight[variant] += 1
            for ladder in self._ladders:
                ladder.started(variant)

    def began(self, ttft_s: float) -> None:
        """Its answer, a stream, began."""
        for ladder in self._ladders:
            ladder.first_byte(self._variant or "", ttft_s)

    def over(self, seen: Observation | None) -> None:
        """It is over; `seen` None: without an answer that teaches. Again does nothing."""
        if self._variant is not None:
            for ladder in self._ladders:
                ladder.ended(seen, self._variant)
            self._in_flight[self._variant] -= 1
            self._variant = None
