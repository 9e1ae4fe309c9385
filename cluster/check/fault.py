"""What a check finds."""

from serve_app.domain.errors import CallerError


class ManifestError(CallerError):
    """A manifest is wrong, or two files of the cluster disagree: need, have, and what to change."""

    code = "invalid_manifest"
    exit_code = 1


class UncheckedError(Exception):
    """A check could not be made here, and why. A skip, never a pass."""
