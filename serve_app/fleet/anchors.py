"""Anchors of a YAML text whose definition was taken out: written out where they are used first."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from serve_app.domain.errors import ConfigError
from serve_app.fleet.yaml_edit import compose, end_of


class Use(NamedTuple):
    """An alias: the anchor that it names, and its place in the text."""

    anchor: str
    start: int
    end: int


def undefined_aliases(text: str) -> list[Use]:
    """Uses of anchors that are not defined before them, in the order of the text."""
    defined: set[str] = set()
    lost = []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            if anchor not in defined:
                start, end = _place(event.start_mark), _place(event.end_mark)
                lost.append(Use(str(anchor), start, end))
        elif anchor is not None:
            defined.add(anchor)
    return lost


def with_anchor(text: str, alias: Use, source: str) -> str:
    """`text` with what the alias stands for in its place, as it was written in `source`.

    Raises ConfigError where `source` does not define it, or in a form that cannot stand there.
    """
    node = _anchored(source, alias.anchor)
    _, start, end = alias
    written = source[node.start_mark.index : end_of(source, node)]
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        head, _, body = written.partition("\n")
        line_end = text.find("\n", end)
        line_end = len(text) if line_end < 0 else line_end
        shift = _indent_at(text, start) + 2 - _indent_of(body)
        moved = "\n".join(_shifted(line, shift) for line in body.split("\n"))
        before, rest = text[:start], text[end:line_end]
        if rest.strip() and not rest.lstrip().startswith("#"):
            return f"{before}&{alias.anchor} {_in_flow(body, alias.anchor)}{text[end:]}"
        comment = head.partition("#")
        kept = f"&{alias.anchor}" + (rest or (f"  #{comment[2]}" if comment[1] else ""))
        return f"{before}{kept}\n{moved}{text[line_end:]}"
    return text[:start] + written + text[end:]


def _in_flow(block: str, anchor: str) -> str:
    """A block's value on one line; its comments go."""
    try:
        value = yaml.safe_load(block)
    except yaml.YAMLError:
        raise ConfigError(f"&{anchor} needs other anchors: it cannot move into {{}}") from None
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).strip()


def _anchored(text: str, anchor: str) -> yaml.Node:
    places = [
        _place(event.start_mark)
        for event in yaml.parse(text, Loader=yaml.SafeLoader)
        if getattr(event, "anchor", None) == anchor and not isinstance(event, yaml.AliasEvent)
    ]
    for node in _nodes(compose(text)):
        if node.start_mark.index in places and text.startswith(f"&{anchor}", node.start_mark.index):
            return node
    raise ConfigError(f"*{anchor} is used and &{anchor} is not defined before it")


def _place(mark: Any) -> int:
    return int(mark.index)


def _nodes(node: yaml.Node | None) -> Iterator[yaml.Node]:
    if node is None:
        return
    yield node
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from _nodes(each)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _nodes(key)
            yield from _nodes(value)


def _indent_at(text: str, place: int) -> int:
    """The column of the key in whose line `place` is; behind a dash where it follows one."""
    line = text[text.rfind("\n", 0, place) + 1 : place]
    found = re.match(r"[ ]*(-[ ]+)*", line)
    return len(found[0]) if found else 0


def _indent_of(block: str) -> int:
    first = re.search(r"^([ ]*)[^ #\n]", block, re.MULTILINE)
    return len(first[1]) if first else 0


def _shifted(line: str, by: int) -> str:
    if not line.strip():
        return line
    return " " * by + line if by >= 0 else line[min(-by, len(line) - len(line.lstrip())) :]
