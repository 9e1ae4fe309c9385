"""What the router saw of one relayed request."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Observation:
    """One request that a variant answered, at the end of its answer.

    Times are as the client's neighbour sees them: from the arrival of the whole request at the
    router. Tokens are what the answer's `usage` says, None where it says nothing.
    """

    variant: str
    status: int
    ttft_s: float | None
    """To the first byte of the body of a stream that began; None: the answer was no stream, whose
    first byte comes with its last token, or a stream without a byte."""
    duration_s: float
    """To its last byte."""
    completion_tokens: int | None = None
    whole: bool = True
    """False: the answer broke off, or the client left before its end."""
    prompt_tokens: int | None = None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None without a TTFT or for fewer than two."""
        if self.ttft_s is None or self.completion_tokens is None or self.completion_tokens < 2:
            return None
        return (self.duration_s - self.ttft_s) / (self.completion_tokens - 1)
