"""HTML in which text can only be text: whatever is not `Html` is escaped."""

import html
from collections.abc import Iterable
from typing import TypeAlias

Content: TypeAlias = "str | Html | Iterable[Content]"


class Html(str):
    """Markup that is finished; made by `tag`, or by us out of nothing that came from outside."""

    __slots__ = ()


VOID = {"meta", "link", "br"}


def tag(name: str, /, *content: Content, **attributes: str | None) -> Html:
    """`<name attributes>content</name>`; `class_` is `class`, `data_x` is `data-x`; None: none."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(content)}</{name}>")


def join(content: Content) -> Html:
    """The parts one after the other, text escaped."""
    if isinstance(content, Html):
        return content
    if isinstance(content, str):
        return Html(html.escape(content, quote=False))
    return Html("".join(join(part) for part in content))
