"""Whether the longest request of a campaign fits every variant's context."""

from collections.abc import Mapping
from dataclasses import dataclass

from loadtests.campaign import Campaign, SyntheticPrompts
from loadtests.campaign.stages import TraceStage
from loadtests.plan.replay import take_excerpt
from serve_app.domain.errors import ConfigError

MESSAGE_TOKENS = 8
"""What a chat template adds to each message: its role, its start and its end (ChatML: 5)."""


@dataclass(frozen=True, slots=True)
class _Longest:
    tokens: int
    why: str
    fix: str


def check_lengths(campaign: Campaign, context_lengths: Mapping[str, int | None]) -> None:
    """Raise ConfigError if prompt and answer can be longer than a variant's context in tokens.

    Variants whose context is not known (None) are not checked. The text of corpus and JSONL
    prompts counts as nothing, as its tokens are not known either.
    """
    known = {name: n for name, n in context_lengths.items() if n is not None}
    for longest in _longest(campaign):
        short = {name: n for name, n in known.items() if n < longest.tokens}
        if short:
            have = ", ".join(f"{name} {n}" for name, n in short.items())
            raise ConfigError(
                f"need a context of {longest.tokens} tokens ({longest.why}), have {have}: "
                f"{longest.fix}, or raise the variant's max_model_len"
            )


def _longest(campaign: Campaign) -> list[_Longest]:
    traces = [stage for stage in campaign.stages if isinstance(stage, TraceStage)]
    found = [_of_trace(campaign, stage) for stage in traces]
    if campaign.search is not None or len(traces) < len(campaign.stages):
        found.append(_of_workload(campaign))
    return found


def _of_workload(campaign: Campaign) -> _Longest:
    """The last turn of the longest conversation: all that was said before, and its answer."""
    workload = campaign.workload
    n_prefix = workload.shared_prefix.tokens if workload.shared_prefix else 0
    n_turns = workload.sessions.turns[1] if workload.sessions else 1
    if isinstance(workload.prompts, SyntheticPrompts):
        n_turn = max(
            each.input_tokens.max + each.output_tokens.max for each in workload.prompts.mix
        )
        why, fix = "input and output", "lower the maxima of `mix`"
    else:
        n_turn = workload.max_tokens[1] if workload.max_tokens else 0
        why, fix = "output alone", "lower workload.max_tokens"
    n_template = (2 * n_turns - 1) * MESSAGE_TOKENS
    return _Longest(
        tokens=n_prefix + n_turns * n_turn + n_template,
        why=f"prefix {n_prefix} + {n_turns} x {n_turn} {why} + template {n_template}",
        fix=f"{fix}, shared_prefix.tokens or sessions.turns",
    )


def _of_trace(campaign: Campaign, stage: TraceStage) -> _Longest:
    rows = take_excerpt(stage, campaign.cell_s(stage)).rows
    row = max(rows, key=lambda row: row.input_tokens + row.output_tokens, default=None)
    n_input, n_output = (row.input_tokens, row.output_tokens) if row else (0, 0)
    return _Longest(
        tokens=n_input + n_output + MESSAGE_TOKENS,
        why=f"stage {stage.name}: input {n_input} + output {n_output} + template {MESSAGE_TOKENS}",
        fix="lower length_scale, max_input_tokens or max_output_tokens",
    )
