"""The three segments of a cell, in whole nanoseconds from its start."""

from dataclasses import dataclass

from loadtests.campaign import Campaign, LoadStage
from loadtests.plan.request import Phase
from serve_app.domain.units import NS_PER_S


@dataclass(frozen=True, slots=True)
class Segment:
    """Warm-up, measured window or cool-down of a cell."""

    phase: Phase
    length_s: float
    start_ns: int
    end_ns: int

    def offset_ns(self, time_s: float) -> int:
        """`time_s` after its start as an offset in the cell, and never on the next segment."""
        return min(self.start_ns + _ns(time_s), self.end_ns - 1)


def segments(campaign: Campaign, stage: LoadStage) -> tuple[Segment, Segment, Segment]:
    """The three segments of a cell of `stage`; warm-up and cool-down may have no length."""
    measured_s = campaign.warmup_s
    cooldown_s = measured_s + stage.duration_s
    end_s = campaign.cell_s(stage)
    return (
        Segment("warmup", campaign.warmup_s, 0, _ns(measured_s)),
        Segment("measured", stage.duration_s, _ns(measured_s), _ns(cooldown_s)),
        Segment("cooldown", campaign.cooldown_s, _ns(cooldown_s), _ns(end_s)),
    )


def _ns(seconds: float) -> int:
    return round(seconds * NS_PER_S)
