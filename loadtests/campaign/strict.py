"""What every part of a campaign file shares: frozen, strict, no unknown keys.

A misspelt key in a load test is a test of something else, so unknown keys are refused and
nothing is coerced from one type to another.
"""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")]
_HOST = re.compile(r"([A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?")


def _of_http(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        is_host = ":" in host or _HOST.fullmatch(host)  # urlsplit checks [IPv6]
        is_right = is_host and parts.port != 0 and parts.scheme in ("http", "https")
    except ValueError as error:  # such as a port that is no number up to 65535
        raise ValueError(f"need http(s)://host[:port], have {url!r}: {error}") from error
    if not is_right:
        raise ValueError(f"need http(s)://host[:port], the host in ASCII, have {url!r}")
    return url


HttpUrl = Annotated[str, AfterValidator(_of_http)]
"""With a host that can be looked up and a port that can be one."""


class Strict(BaseModel):
    """Frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
