"""Who may ask the router, and how much: the part `admission` of the router's `user_config`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from serve_app.config.strict import StrictModel
from serve_app.config.tenants import LimitsConfig
from serve_app.domain.units import KIB

KEYS_FILE_VARIABLE = "QUANTILE_API_KEYS_FILE"

Seconds = Annotated[float, Field(gt=0)]


class BodyConfig(StrictModel):
    """How long a request's body may take to come; then 408."""

    piece_timeout_s: Seconds = 10.0
    """Between two pieces, and before the first."""
    timeout_s: Seconds = 60.0
    """For all of it: at least the largest body over the slowest line that is to be served."""
    max_pending: PositiveInt = 256
    """Bodies awaited at once; of more, the one awaited longest is given up. Below the
    `max_ongoing_requests` of the router's deployment, or uploads that stall take them all."""


class AdmissionConfig(StrictModel):
    """Keys, limits and sizes. Every limit holds for one router replica (`replicas_hint`).

    By default everybody may ask, as much as the engines can do.
    """

    keys_file: Annotated[str, Field(min_length=1)] | None = None
    """The tenants and the digests of their keys, read again when it changes; None: the file that
    QUANTILE_API_KEYS_FILE names, if it is set."""
    anonymous: bool | None = None
    """Whether a request without a key is served; None: only where there is no file of keys."""
    anonymous_limits: LimitsConfig = LimitsConfig()
    """Of all requests without a key together."""
    max_in_flight: PositiveInt | None = None
    """Requests under way at once, of all tenants; None: no limit but Serve's own."""
    max_waiting: NonNegativeInt = 256
    """Requests that wait for a place, of all tenants; 0: none waits."""
    max_wait_s: Seconds = 5.0
    """How long one waits for a place; then 429."""
    replicas_hint: PositiveInt = 1
    """Router replicas that share the load evenly: each gives a tenant so much less. The limits of
    the replica itself (`max_in_flight`, `max_waiting`) are not divided."""
    assumed_completion_tokens: PositiveInt = 512
    """What a request without `max_tokens` reserves of its tenant's tokens, per answer."""
    max_headers: PositiveInt = 90
    max_header_bytes: PositiveInt = 13 * KIB
    """Path, query and headers, as they are on the wire. Serve's HAProxy takes 101 lines and 15,360
    bytes, and takes each request twice: the second time with what the router adds. A request that
    passes only once would look like a variant's fault."""
    body: BodyConfig = BodyConfig()

    @model_validator(mode="after")
    def _the_path_is_absolute(self) -> Self:
        if self.keys_file is not None and not Path(self.keys_file).is_absolute():
            raise ValueError(
                f"`keys_file` needs an absolute path, have {self.keys_file!r}: replicas run in a "
                "working directory of Ray's"
            )
        return self

    def keys_path(self, environ: Mapping[str, str] = os.environ) -> Path | None:
        """Where the keys are; None: there are none."""
        name = self.keys_file or environ.get(KEYS_FILE_VARIABLE)
        return None if name is None else Path(name)

    def allows_anonymous(self, *, has_keys: bool) -> bool:
        """Whether a request without a key is served."""
        return self.anonymous if self.anonymous is not None else not has_keys
