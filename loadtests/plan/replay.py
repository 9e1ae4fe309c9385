"""The excerpt of a trace that a stage plays: its times, its lengths, and what its texts share."""

from collections.abc import Iterator
from dataclasses import dataclass

from loadtests.campaign.stages import TraceStage
from loadtests.plan.request import Part
from loadtests.plan.seeds import seed_of
from loadtests.plan.traces import BLOCK_TOKENS, TraceRow, read_trace
from serve_app.domain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Played:
    """One request of the excerpt."""

    at_s: float
    """From the start of the cell, in the time of the campaign."""
    input_tokens: int
    output_tokens: int
    blocks: tuple[tuple[int, int], ...]
    """Hash id and length of each piece of the prompt; empty where the trace does not know them."""
    session: str | None


@dataclass(frozen=True, slots=True)
class Excerpt:
    """What a stage plays of its trace, in the order of time."""

    rows: tuple[Played, ...]
    n_failed: int
    """Requests of the excerpt that are left out: they got no answer when the trace was recorded."""
    n_input_cut: int
    """Prompts that are cut to `max_input_tokens`."""
    n_output_cut: int
    """Answers that are cut to `max_output_tokens`."""

    def note(self) -> str:
        """One sentence for the report."""
        return (
            f"{len(self.rows)} requests of the trace; {self.n_failed} more are left out, as they "
            f"failed when it was recorded; {self.n_input_cut} prompts and {self.n_output_cut} "
            f"answers are cut to the stage's maxima"
        )


def take_excerpt(stage: TraceStage, length_s: float) -> Excerpt:
    """`length_s` seconds of the stage's trace, in the time of the campaign.

    Raises ConfigError if the trace is shorter than that, or cannot be read.
    """
    end_s = stage.start_s + length_s * stage.speedup
    rows: list[Played] = []
    n_failed = n_input_cut = n_output_cut = 0
    last_s = 0.0
    for row in read_trace(stage.format, stage.path):
        last_s = row.at_s
        if row.at_s >= end_s:
            break
        if row.at_s < stage.start_s:
            continue
        if row.output_tokens == 0:
            n_failed += 1
            continue
        n_input, n_output = _scaled(row.input_tokens, stage), _scaled(row.output_tokens, stage)
        played = _play(stage, row, n_input, n_output)
        n_input_cut += played.input_tokens < n_input
        n_output_cut += played.output_tokens < n_output
        rows.append(played)
    if last_s < end_s:
        raise ConfigError(
            f"stage {stage.name}: need {end_s:g} s of {stage.path} ({length_s:g} s of warm-up, "
            f"window and cool-down, x speedup {stage.speedup:g}, after start_s {stage.start_s:g}), "
            f"have {last_s:g} s: lower duration_s, speedup or start_s"
        )
    return Excerpt(tuple(rows), n_failed, n_input_cut, n_output_cut)


def parts_of(row: Played, own_seed: int, *key: object) -> tuple[Part, ...]:
    """The prompt: pieces that requests of the same `key` share by hash id, or a text of its own."""
    if not row.blocks:
        return (Part(own_seed, row.input_tokens),)
    return tuple(Part(seed_of(*key, "block", hash_id), n) for hash_id, n in row.blocks)


def _play(stage: TraceStage, row: TraceRow, n_input: int, n_output: int) -> Played:
    n_input = min(n_input, stage.max_input_tokens or n_input)
    return Played(
        at_s=(row.at_s - stage.start_s) / stage.speedup,
        input_tokens=n_input,
        output_tokens=min(n_output, stage.max_output_tokens or n_output),
        blocks=tuple(_blocks(row.hash_ids, n_input, BLOCK_TOKENS * stage.length_scale)),
        session=row.session,
    )


def _scaled(tokens: int, stage: TraceStage) -> int:
    return max(1, round(tokens * stage.length_scale))


def _blocks(
    hash_ids: tuple[int, ...], n_input: int, block_tokens: float
) -> Iterator[tuple[int, int]]:
    """Pieces of `block_tokens` tokens, as whole numbers that add up to `n_input`.

    A piece begins at the same token in all requests, as a hash id stands for its text and all
    before it.
    """
    start = 0
    for number, hash_id in enumerate(hash_ids, start=1):
        end = min(round(number * block_tokens), n_input)
        if end > start:
            yield hash_id, end - start
        start = end
