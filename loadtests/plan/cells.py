"""The cells of a campaign: when each request is sent, to which variant, and what it asks.

Pure and seeded: any process can make the same plan again and take its part of it.
"""

import collections
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from loadtests.campaign import Campaign, JsonlPrompts, LoadStage
from loadtests.campaign.stages import ConcurrencyStage, TraceStage
from loadtests.plan.arrivals import arrivals
from loadtests.plan.replay import Excerpt, parts_of, take_excerpt
from loadtests.plan.request import Cell, Phase, PlannedRequest, Turn
from loadtests.plan.seeds import stream_of
from loadtests.plan.segments import segments
from loadtests.plan.traffic import Traffic
from serve_app.domain.errors import ConfigError
from serve_app.domain.units import NS_PER_S

CLOSED_LOOP_POOL = 2048
"""Different requests of a closed loop; its users take them in turn."""
_KEPT = 4
"""Stages and blocks whose requests are kept at a time: cells of one follow each other."""


class Planner:
    """Makes cells of a campaign, for its own stages and for those that a search thinks of.

    `book_size` is the number of the campaign's prompts, as `load_prompts` gives them.
    """

    def __init__(self, campaign: Campaign, book_size: int = 0) -> None:
        self.campaign = campaign
        self._book_size = book_size
        self._made = functools.lru_cache(_KEPT)(self._make)
        self._excerpt = functools.cache(self._take_excerpt)

    def requests(self, stage: LoadStage, block: int) -> tuple[PlannedRequest, ...]:
        """The requests of every cell of `stage` in `block`, in the order of time.

        Raises ConfigError if none falls into the measured window, or if a trace cannot be played.
        """
        return self._made(stage, block)

    def cell(self, index: int, stage: LoadStage, block: int, repeat: int, variant: str) -> Cell:
        """One cell. Cells that differ in index, repeat and variant alone ask the same.

        Raises ConfigError as `requests` does.
        """
        requests = self.requests(stage, block)
        _, measured, cooldown = segments(self.campaign, stage)
        return Cell(
            index=index,
            stage=stage.name,
            block=block,
            repeat=repeat,
            variant=variant,
            rate_per_s=_rate_per_s(stage, requests),
            window_ns=(measured.start_ns, measured.end_ns),
            end_ns=cooldown.end_ns,
            requests=requests,
            concurrency=stage.concurrency if isinstance(stage, ConcurrencyStage) else None,
        )

    def notes(self) -> tuple[str, ...]:
        """What a reader should know of the traces: how much was left out and cut, per stage."""
        return tuple(
            f"{stage.name}: {self._excerpt(stage).note()}"
            for stage in self.campaign.stages
            if isinstance(stage, TraceStage)
        )

    def _make(self, stage: LoadStage, block: int) -> tuple[PlannedRequest, ...]:
        if isinstance(stage, ConcurrencyStage):
            return tuple(self._closed_loop(stage, block))
        if isinstance(stage, TraceStage):
            requests = tuple(self._replay(stage, block))
        else:
            requests = tuple(self._open_loop(stage, block))
        if not any(request.phase == "measured" for request in requests):
            raise ConfigError(
                f"stage {stage.name}: need one or more requests in the measured window of "
                f"{stage.duration_s:g} s, have none: raise duration_s or the rate"
            )
        return requests

    def _open_loop(self, stage: LoadStage, block: int) -> Iterator[PlannedRequest]:
        traffic = self._traffic(stage, block)
        rng = stream_of(self.campaign.seed, stage.name, block, "arrivals")
        for segment in segments(self.campaign, stage):
            for time_s in arrivals(stage, segment.phase, segment.length_s, rng):
                yield _planned(segment.phase, segment.offset_ns(time_s), traffic)

    def _closed_loop(self, stage: LoadStage, block: int) -> Iterator[PlannedRequest]:
        traffic = self._traffic(stage, block)
        for _ in range(CLOSED_LOOP_POOL):
            yield _planned("measured", 0, traffic)

    def _replay(self, stage: TraceStage, block: int) -> Iterator[PlannedRequest]:
        """The trace's times and lengths in every block, and other text in each."""
        key = (self.campaign.seed, stage.name, block)
        rng = stream_of(*key, "text")
        rows = collections.deque(self._excerpt(stage).rows)
        start_s = 0.0
        for segment in segments(self.campaign, stage):
            while rows and rows[0].at_s < start_s + segment.length_s:
                row = rows.popleft()
                yield PlannedRequest(
                    offset_ns=segment.offset_ns(row.at_s - start_s),
                    phase=segment.phase,
                    turns=(Turn("user", parts_of(row, rng.getrandbits(63), *key)),),
                    max_tokens=row.output_tokens,
                    session=row.session,
                )
            start_s += segment.length_s

    def _traffic(self, stage: LoadStage, block: int) -> Traffic:
        return Traffic(self.campaign, f"{stage.name}-{block}", self._book_size)

    def _take_excerpt(self, stage: TraceStage) -> Excerpt:
        return take_excerpt(stage, self.campaign.cell_s(stage))


def input_files(campaign: Campaign) -> tuple[Path, ...]:
    """The files that the plan is made from, besides the campaign itself."""
    prompts = campaign.workload.prompts
    paths = [prompts.path] if isinstance(prompts, JsonlPrompts) else []
    paths += [stage.path for stage in campaign.stages if isinstance(stage, TraceStage)]
    return tuple(dict.fromkeys(paths))


def _planned(phase: Phase, offset_ns: int, traffic: Traffic) -> PlannedRequest:
    ask = traffic.ask(offset_ns / NS_PER_S)
    return PlannedRequest(offset_ns, phase, ask.turns, ask.max_tokens, ask.kind, ask.session)


def _rate_per_s(stage: LoadStage, requests: Sequence[PlannedRequest]) -> float | None:
    """Offered in the measured window; None in a closed loop."""
    if isinstance(stage, ConcurrencyStage):
        return None
    if isinstance(stage, TraceStage):
        return sum(request.phase == "measured" for request in requests) / stage.duration_s
    return stage.rate_per_s
