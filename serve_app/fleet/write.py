"""Put planned numbers into a Serve config file and leave every other byte of it as it is.

Text is edited where YAML's own parser says that a value stands; a round trip through a YAML library
would move comments (ruamel.yaml does, after aliases). A mapping that a variant takes by alias is
not edited, since others share it: the alias is extended in place, `{<<: *engine, key: value}`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.config.serve_file import VARIANT_IMPORT
from serve_app.domain.errors import ConfigError

Planned = Mapping[str, Mapping[str, Any]]
"""Sections of a variant's args (`engine`, `gpu`) and the scalars to set in them."""

_Values = dict[int, dict[str, str]]
"""Scalars of mapping nodes, by the node's identity, as they will stand after the edits."""

_ALIAS = re.compile(r"\s*:\s*(\*[^\s,\[\]{}]+)")


@dataclass(frozen=True)
class _Edit:
    start: int
    end: int
    text: str
    column: int = 0


def write_planned(path: Path, planned: Mapping[str, Planned]) -> bool:
    """Set the planned numbers of each variant, by its name; whether that changed the file.

    Raises ConfigError when the file does not hold one of the variants.
    """
    before = path.read_text()
    after = set_planned(before, planned)
    if after != before:
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(after)
        temporary.replace(path)
    return after != before


def set_planned(text: str, planned: Mapping[str, Planned]) -> str:
    """`text` with the planned numbers in it. Raises ConfigError for an unknown variant."""
    edits: list[_Edit] = []
    found = _variant_args(text)
    missing = [name for name in planned if name not in found]
    if missing:
        raise ConfigError(f"the file has no variant {', '.join(missing)}; has {', '.join(found)}")
    values: _Values = {}
    for name in (name for name in found if name in planned):  # as in the file: anchors come first
        for section, wished in planned[name].items():
            edits += _set_section(text, found[name], section, wished, values)
    # From the end; of insertions in one place the outermost first, so that it ends up last.
    edits.reverse()
    for edit in sorted(edits, key=lambda edit: (-edit.start, edit.column)):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def _variant_args(text: str) -> dict[str, yaml.MappingNode]:
    """The `args` mapping of each variant application, by the variant's name."""
    root = yaml.compose(text, Loader=yaml.CSafeLoader)
    applications = _child(root, "applications")
    found = {}
    for application in applications.value if isinstance(applications, yaml.SequenceNode) else []:
        kind, args = _child(application, "import_path"), _child(application, "args")
        if kind is not None and kind.value == VARIANT_IMPORT:
            name = _child(args, "name")
            if isinstance(args, yaml.MappingNode) and name is not None:
                found[name.value] = args
    return found


def _pairs(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    return next((value for name, value in _pairs(node) if name.value == key), None)


def _set_section(
    text: str, args: yaml.MappingNode, section: str, wished: Mapping[str, Any], values: _Values
) -> list[_Edit]:
    pair = next((pair for pair in _pairs(args) if pair[0].value == section), None)
    if pair is None:
        return [_insertion(text, args, f"{section}: {{{_flow(wished)}}}")]
    key, node = pair
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"`{section}` is no mapping: {text[key.start_mark.index :][:60]!r}")
    have = _values_of(node, values)
    changed = {name: value for name, value in wished.items() if have.get(name) != _scalar(value)}
    if node.start_mark.index < key.start_mark.index:
        return [_extend_alias(text, key, changed)] if changed else []
    own = {name.value: value for name, value in node.value}
    edits = []
    for name, value in changed.items():
        have[name] = _scalar(value)
        if name in own:
            place = own[name]
            edits.append(_Edit(place.start_mark.index, place.end_mark.index, _scalar(value)))
        else:
            edits.append(_insertion(text, node, f"{name}: {_scalar(value)}"))
    return edits


def _values_of(node: yaml.MappingNode, values: _Values) -> dict[str, str]:
    """The mapping's scalars as they will stand, those that it merges (`<<`) included."""
    if id(node) not in values:
        merged = _child(node, "<<")
        inherited = _values_of(merged, values) if isinstance(merged, yaml.MappingNode) else {}
        own = {name.value: value.value for name, value in node.value if name.value != "<<"}
        values[id(node)] = inherited | own
    return values[id(node)]


def _extend_alias(text: str, key: yaml.Node, values: Mapping[str, Any]) -> _Edit:
    alias = _ALIAS.match(text, key.end_mark.index)
    if alias is None:
        raise ConfigError(f"`{key.value}` is an alias in a form that --write does not know")
    return _Edit(alias.start(1), alias.end(1), f"{{<<: {alias[1]}, {_flow(values)}}}")


def _insertion(text: str, mapping: yaml.MappingNode, entry: str) -> _Edit:
    """`entry` as the mapping's last: on a line of its own, or before the closing brace."""
    if mapping.flow_style:
        place = mapping.end_mark.index - 1
        return _Edit(place, place, f", {entry}" if mapping.value else entry)
    first_key, _ = mapping.value[0]
    last_key, last_value = mapping.value[-1]
    is_alias = last_value.start_mark.index < last_key.start_mark.index  # it stands elsewhere
    end = last_key.end_mark.index if is_alias else _last_written(last_value)
    newline = text.find("\n", end)
    place = len(text) if newline < 0 else newline
    column = first_key.start_mark.column
    return _Edit(place, place, f"\n{' ' * column}{entry}", column)


def _last_written(node: yaml.Node) -> int:
    """Where a node's text ends: a block collection's own mark lies after the blank lines and
    comments that follow it."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return node.end_mark.index


def _flow(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {_scalar(value)}" for name, value in values.items())


def _scalar(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
