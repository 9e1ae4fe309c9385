"""What the router reads of a request's body; the rest is passed on unread."""

from typing import Any

import msgspec

from serve_app.domain.errors import MalformedRequestError
from serve_app.routing.admission import TokensNeed, estimate_need
from serve_app.serving.http import UNREADABLE_JSON


class RequestHead(msgspec.Struct):
    """Fields of any of the relayed paths. Those of type Any are the engine's to refuse."""

    model: str
    user: str | None = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n: Any = None

    def need(self, body_bytes: int, assumed_tokens: int) -> TokensNeed:
        """What the request may cost at most."""
        limits = (self.max_completion_tokens, self.max_tokens, self.max_output_tokens)
        most = next((each for each in limits if _is_int(each)), None)
        return estimate_need(body_bytes, most, self.n if _is_int(self.n) else None, assumed_tokens)


_DECODER = msgspec.json.Decoder(RequestHead)


def parse_head(body: bytes) -> RequestHead:
    """The head of a body. Raises MalformedRequestError."""
    try:
        return _DECODER.decode(body)
    except UNREADABLE_JSON as error:
        raise MalformedRequestError(
            f"the body is not a request that the router understands: {error}; "
            'it needs JSON with at least {"model": "..."}'
        ) from None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
