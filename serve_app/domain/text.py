"""Text that others sent, in the messages that they get back."""

_LONGEST = 100


def shown(text: str, longest: int = _LONGEST) -> str:
    """The text quoted, and cut: an error must not repeat the megabyte that caused it."""
    return repr(text if len(text) <= longest else f"{text[:longest]}...")
