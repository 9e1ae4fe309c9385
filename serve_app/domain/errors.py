"""Every error that QuanTile raises on purpose, split by whose fault it is.

    QuantileError
    ├── CallerError                 the caller can fix it; HTTP 4xx, exit code 2
    │   ├── ConfigError             a configuration file or argument is wrong
    │   ├── CheckpointError         a checkpoint is not what it was declared to be
    │   │   └── UnreachableError    its place did not answer, or broke off: the same may work later
    │   ├── PlanError               the variants do not fit the GPUs; exit code 1
    │   ├── MalformedRequestError   400
    │   ├── InvalidKeyError         401
    │   ├── NotAllowedError         403
    │   ├── UnknownModelError       404
    │   ├── UnknownPathError        404
    │   ├── MethodNotAllowedError   405
    │   ├── SlowBodyError           408
    │   ├── BodyTooLargeError       413
    │   ├── RateLimitError          429
    │   ├── QuotaError              429
    │   └── HeadersTooLargeError    431
    └── ServerError                 we could not do our part; HTTP 5xx, exit code 1
        ├── VariantUnavailableError 503  no variant could take the request
        ├── DeadlineError           504  the request's time was up
        ├── EngineError             an engine did not start, or died
        ├── BuildError              a variant could not be made, or came out wrong
        └── InvalidRunError         a measurement cannot be trusted; exit code 3

A message states need, have, and what to change. Arguments are positional, so that errors
survive pickling between Ray actors.
"""


class QuantileError(Exception):
    """Root of the tree. `code` is the stable, machine-readable name of the error."""

    http_status = 500
    code = "internal_error"
    kind = "server_error"
    """The `type` of OpenAI's error object."""
    exit_code = 1
    retry_after_s: float | None = None
    """After how long the same request may succeed; None is not known, or never."""
    response_headers: tuple[tuple[bytes, bytes], ...] = ()
    """Headers that the answer carries besides `retry-after`."""


class CallerError(QuantileError):
    """The caller can fix this by changing the request, the file or the command."""

    http_status = 400
    code = "invalid_request"
    kind = "invalid_request_error"
    exit_code = 2


class ConfigError(CallerError):
    """A configuration file or a builder argument is wrong."""

    code = "invalid_config"


class CheckpointError(CallerError):
    """A checkpoint is missing, damaged, or of another format than declared."""

    code = "invalid_checkpoint"


class UnreachableError(CheckpointError):
    """The place of a checkpoint did not answer, or broke off: the same read may work later."""

    code = "checkpoint_unreachable"


class PlanError(CallerError):
    """What the configuration asks for does not fit the GPUs, or cannot run on them."""

    code = "does_not_fit"
    exit_code = 1


class MalformedRequestError(CallerError):
    """The request's body is not the JSON that the path takes."""


class InvalidKeyError(CallerError):
    """The request carries no API key, or one that opens nothing here."""

    http_status = 401
    code = "invalid_api_key"
    response_headers = ((b"www-authenticate", b'Bearer realm="quantile"'),)


class NotAllowedError(CallerError):
    """The key is good, and not for this model or variant. OpenAI's code for it."""

    http_status = 403
    code = "model_not_found"
    # RFC 6750, section 3.1
    response_headers = (
        (b"www-authenticate", b'Bearer realm="quantile", error="insufficient_scope"'),
    )


class UnknownModelError(CallerError):
    """The request names a model, or a pinned variant, that is not served here."""

    http_status = 404
    code = "model_not_found"


class UnknownPathError(CallerError):
    """The path is not one that the router serves."""

    http_status = 404
    code = "path_not_found"


class MethodNotAllowedError(CallerError):
    """The path exists, but not for this HTTP method."""

    http_status = 405
    code = "method_not_allowed"


class SlowBodyError(CallerError):
    """The body did not come in the time that the router gives it."""

    http_status = 408
    code = "request_timeout"
    # The rest of the body is still to come: nothing else may follow on this connection.
    response_headers = ((b"connection", b"close"),)


class BodyTooLargeError(CallerError):
    """The body is larger than the router takes."""

    http_status = 413
    code = "body_too_large"


class RateLimitError(CallerError):
    """More than the caller's limits, or than this router, can take now."""

    http_status = 429
    code = "rate_limit_exceeded"
    kind = "requests"


class QuotaError(CallerError):
    """The caller's budget of tokens for the day is spent."""

    http_status = 429
    code = "insufficient_quota"
    kind = "insufficient_quota"


class HeadersTooLargeError(CallerError):
    """The request has more headers, or larger ones, than the router takes."""

    http_status = 431
    code = "headers_too_large"


class ServerError(QuantileError):
    """We could not do our part."""

    code = "server_error"


class VariantUnavailableError(ServerError):
    """No variant that may serve this request can take it now."""

    http_status = 503
    code = "variant_unavailable"
    retry_after_s = 1.0


class DeadlineError(ServerError):
    """The time that the request may take was over before its answer began."""

    http_status = 504
    code = "deadline_exceeded"
    response_headers = ((b"x-should-retry", b"false"),)
    """OpenAI's clients would ask again by themselves, beyond the time that was given."""


class EngineError(ServerError):
    """An engine did not start, or died."""

    code = "engine_error"


class BuildError(ServerError):
    """A variant could not be made, or was made and is wrong."""

    code = "build_failed"


class InvalidRunError(ServerError):
    """A measurement ran but cannot be trusted; the message says why."""

    code = "invalid_run"
    exit_code = 3
