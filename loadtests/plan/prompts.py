"""The prompts of a workload, and the request bodies made from them."""

import msgspec

from loadtests.campaign import CorpusPrompts, JsonlPrompts, Workload
from serve_app.domain.errors import ConfigError


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str


def load_prompts(source: CorpusPrompts | JsonlPrompts) -> tuple[str, ...]:
    """The prompts in a fixed order. Raises ConfigError if the file is unreadable or empty."""
    if isinstance(source, CorpusPrompts):
        from serve_app.reference.corpus import facts

        return tuple(fact.question for fact in facts() if fact.split == source.split)
    try:
        lines = source.path.read_bytes().splitlines()
        prompts = tuple(msgspec.json.decode(line, type=_Line).prompt for line in lines if line)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{source.path}: cannot read prompts: {error}") from error
    if not prompts:
        raise ConfigError(f"{source.path}: need one or more prompts, have none")
    return prompts


def chat_body(workload: Workload, model: str, prompt: str, max_tokens: int) -> bytes:
    """JSON of one streamed chat request that asks for usage, and for a length if it is forced."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": workload.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if workload.forced_length:
        body |= {"ignore_eos": True, "min_tokens": max_tokens}
    return msgspec.json.encode(body)
