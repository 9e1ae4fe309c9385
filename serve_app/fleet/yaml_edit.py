"""Set values in the text of a Serve config file where YAML's own parser says that they stand.

A round trip through a YAML library would move comments (ruamel.yaml does, after aliases). What an
alias or a merge (`<<`) brings is shared with others and not edited: it is extended in place,
`{<<: *engine, key: value}`. Rare forms are not known here: who calls loads the result and looks.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from serve_app.domain.errors import ConfigError

_ANCHOR = re.compile(r"&([\w-]+)")
_PROPERTIES = re.compile(r"\A([&!]\S*[ \t]*)*")
"""A node's anchor and tag: PyYAML takes them for the beginning of its text."""
_BREAK = re.compile(r"\r?\n")


class _Alias(yaml.Node):
    """`*name` as a node of its own, where PyYAML gives the node that it names as its `value`."""


class _Composer(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        is_alias = isinstance(event, yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias and node is not None:
            return _Alias(node.tag, node, event.start_mark, event.end_mark)
        return node


@dataclass(frozen=True)
class _Edit:
    start: int
    end: int
    text: str


def with_values(text: str, index: int, values: Mapping[str, Any]) -> str:
    """`text` with `values` (scalars, or mappings of them) set in the index-th application.

    Raises ConfigError for a form in which they cannot be set.
    """
    applications = find_node(compose(text), "applications")
    if not isinstance(applications, yaml.SequenceNode):
        raise ConfigError("`applications` is an alias: write the list out in its place")
    edits = sorted(_set(text, applications.value[index], values), key=lambda edit: edit.start)
    # From the end. Of edits in one place an inner mapping's came first, and so is applied last.
    for edit in reversed(edits):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def compose(text: str) -> yaml.Node | None:
    """The text's nodes; an alias is a node of its own, with its place in the text."""
    return yaml.compose(text, Loader=_Composer)


def in_flow(values: Mapping[str, Any]) -> str:
    """The values as a YAML flow mapping; floats get four decimals, Ray's grain of a fraction."""
    return _written("", None, values)


def _set(text: str, node: yaml.Node, value: Any) -> Iterator[_Edit]:
    if not (isinstance(node, yaml.MappingNode) and isinstance(value, Mapping)):
        yield _replacement(text, node, _written(text, node, value))
        return
    own = own_nodes(node)
    for name in value:
        if name in own:
            yield from _set(text, own[name], value[name])
    added = {name: value[name] for name in value if name not in own}
    if added:
        yield _insertion(text, node, _entries(text, node, added))


def own_nodes(mapping: yaml.MappingNode) -> dict[str, yaml.Node]:
    """What stands in the mapping itself, by its key."""
    return {key.value: value for key, value in mapping.value if isinstance(key, yaml.ScalarNode)}


def find_node(node: yaml.Node | None, name: str) -> yaml.Node | None:
    """What stands under `name`, be it merged from elsewhere."""
    if isinstance(node, _Alias):
        node = node.value
    if not isinstance(node, yaml.MappingNode):
        return None
    own = own_nodes(node)
    if name in own:
        return own[name]
    merged = own.get("<<")
    sources = merged.value if isinstance(merged, yaml.SequenceNode) else [merged]
    return next((found for source in sources if (found := find_node(source, name))), None)


def _written(text: str, shared: yaml.Node | None, value: Any) -> str:
    """The value in flow style; a mapping extends the `shared` one that it takes the place of."""
    if not isinstance(value, Mapping):
        return f"{value:.4f}" if isinstance(value, float) else str(value)
    entries = _entries(text, shared, value)
    if isinstance(shared, _Alias | yaml.MappingNode):
        entries.insert(0, f"<<: *{_anchor(text, shared, value)}")
    return "{" + ", ".join(entries) + "}"


def _entries(text: str, shared: yaml.Node | None, values: Mapping[str, Any]) -> list[str]:
    return [f"{name}: {_written(text, find_node(shared, name), values[name])}" for name in values]


def _anchor(text: str, node: yaml.Node, values: Mapping[str, Any]) -> str:
    start = node.start_mark.index
    if isinstance(node, _Alias):
        return text[start + 1 : node.end_mark.index]
    anchor = _ANCHOR.match(text, start)
    if anchor is None:
        raise ConfigError(
            f"the mapping in line {node.start_mark.line + 1} comes by `<<` and has no anchor to "
            f"extend it by: put `&name` before it, or write it out with {in_flow(values)}"
        )
    return anchor[1]


def _replacement(text: str, node: yaml.Node, new: str) -> _Edit:
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, _Alias):
        return _Edit(start, end, new)
    old = text[start:end]
    is_plain = isinstance(node, yaml.ScalarNode) and node.style not in ("|", ">")
    if not is_plain or len(old.splitlines()) > 1:  # a comment may stand on its first line
        raise ConfigError(f"line {node.start_mark.line + 1} has no value of one line: set {new}")
    start += len(old) - len(_PROPERTIES.sub("", old))
    gap = "" if text[start - 1].isspace() or start < end else " "
    return _Edit(start, end, gap + new)


def _insertion(text: str, mapping: yaml.MappingNode, entries: list[str]) -> _Edit:
    """The entries as the mapping's last: on lines of their own, or before the closing brace."""
    if not mapping.value:
        place = mapping.end_mark.index - 1
        return _Edit(place, place, ", ".join(entries))
    end = end_of(text, mapping.value[-1][1])
    if mapping.flow_style:  # what follows may be a comma, which YAML lets stand before the brace
        return _Edit(end, end, "".join(f", {entry}" for entry in entries))
    line_end = _BREAK.search(text, end)
    place = line_end.start() if line_end else len(text)
    known = line_end or _BREAK.search(text)
    indented = (known[0] if known else "\n") + " " * mapping.value[0][0].start_mark.column
    return _Edit(place, place, "".join(indented + entry for entry in entries))


def end_of(text: str, node: yaml.Node) -> int:
    """Where a node's text ends; a block's own mark lies after what follows it, as comments do."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return len(text[: node.end_mark.index].rstrip())
