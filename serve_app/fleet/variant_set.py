"""Take variants out of a Serve config file's text, and set its split; every other byte stays.

An anchor that goes with a variant is written out where it is used next. What comes out is loaded
and held against what went in: either exactly this differs, or ConfigError is raised.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from serve_app.config.serve_file import ROUTER_IMPORT
from serve_app.domain.errors import ConfigError
from serve_app.fleet.anchors import undefined_aliases, with_anchor
from serve_app.fleet.write import load_applications, variant_places
from serve_app.fleet.yaml_edit import compose, end_of, find_node, own_nodes

_USER_CONFIG = ("split", "fallback", "sleepers")


def with_variant_set(text: str, split_bp: Mapping[str, int], fallback: Sequence[str]) -> str:
    """`text` with the variants of `split_bp` alone, and with that split and fallback order.

    A variant that may sleep stays among the sleepers. Raises ConfigError for a variant that the
    file does not have, and for text that cannot be changed so without changing something else.
    """
    content = load_applications(text)
    names = variant_places(content)
    unknown = [name for name in split_bp if name not in names.values()]
    if unknown:
        raise ConfigError(
            f"the file has no variant {', '.join(unknown)}; has {', '.join(names.values())}"
        )
    wanted = _wanted(content, names, split_bp, fallback)
    gone = [index for index, name in names.items() if name not in split_bp]
    try:
        after = _set_split(_without(text, gone), wanted)
        found = load_applications(after)
    except ConfigError as error:
        raise _by_hand(str(error), split_bp, fallback) from None
    if found != wanted:
        raise _by_hand("it would change more than the variants and the split", split_bp, fallback)
    return after


def _router_config(content: Mapping[str, Any]) -> tuple[int, int]:
    """Where the router's user_config stands: the application and the deployment."""
    for index, application in enumerate(content["applications"]):
        if isinstance(application, dict) and application.get("import_path") == ROUTER_IMPORT:
            for place, deployment in enumerate(application.get("deployments") or []):
                if isinstance(deployment, dict) and deployment.get("user_config"):
                    return index, place
    raise ConfigError("the file has no router with a user_config")


def _wanted(
    content: Mapping[str, Any],
    names: Mapping[int, str],
    split_bp: Mapping[str, int],
    fallback: Sequence[str],
) -> dict[str, Any]:
    wanted = copy.deepcopy(dict(content))
    index, place = _router_config(wanted)
    config = wanted["applications"][index]["deployments"][place]["user_config"]
    config["split"] = dict(split_bp)
    config["fallback"] = list(fallback)
    if config.get("sleepers"):
        config["sleepers"] = [name for name in config["sleepers"] if name in split_bp]
    wanted["applications"] = [
        application
        for i, application in enumerate(wanted["applications"])
        if i not in names or names[i] in split_bp
    ]
    return wanted


def _without(text: str, gone: Sequence[int]) -> str:
    """The text without these applications, and without what is written above each of them."""
    root = compose(text)
    applications = find_node(root, "applications")
    if not isinstance(applications, yaml.SequenceNode) or applications.flow_style:
        raise ConfigError("`applications` is no list of one application per `- `")
    before = text
    for index in reversed(gone):
        item = applications.value[index]
        if index:
            start = _line_end(text, end_of(text, applications.value[index - 1]))
        else:
            start = text.rindex("\n", 0, text.rindex("-", 0, item.start_mark.index))
        text = text[:start] + text[_line_end(text, end_of(text, item)) :]
    while lost := undefined_aliases(text):
        text = with_anchor(text, lost[0], before)
    return text


def _line_end(text: str, place: int) -> int:
    found = text.find("\n", place)
    return len(text) if found < 0 else found


def _set_split(text: str, wanted: Mapping[str, Any]) -> str:
    """The text with the router's split, fallback and sleepers as wanted, one after the other."""
    index, place = _router_config(wanted)
    config = wanted["applications"][index]["deployments"][place]["user_config"]
    for name in _USER_CONFIG:
        have = load_applications(text)["applications"][index]["deployments"][place]["user_config"]
        if name in config and have.get(name) != config[name]:
            text = _set_value(text, (index, place), name, config[name])
    return text


def _set_value(text: str, at: tuple[int, int], name: str, value: Any) -> str:
    node = _user_config_node(text, at)
    known = own_nodes(node).get(name)
    flow = _flow(value)
    if known is None:
        return _added(text, node, f"{name}: {flow}")
    start, end = known.start_mark.index, end_of(text, known)
    if not isinstance(known, yaml.CollectionNode):
        raise ConfigError(f"`{name}` of the router's user_config is an alias")
    if known.flow_style:
        return text[:start] + flow + text[known.end_mark.index :]
    key_end = text.rindex(":", 0, start) + 1
    return f"{text[:key_end]} {flow}{text[end:]}"


def _user_config_node(text: str, at: tuple[int, int]) -> yaml.MappingNode:
    node: Any = find_node(compose(text), "applications")
    steps: list[Callable[[Any], Any]] = [
        lambda each: each.value[at[0]],
        lambda each: find_node(each, "deployments"),
        lambda each: each.value[at[1]],
        lambda each: own_nodes(each).get("user_config"),
    ]
    for step in steps:
        node = step(node)
        if not isinstance(node, yaml.CollectionNode):
            raise ConfigError("the router's user_config is an alias")
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError("the router's user_config is no mapping")
    return node


def _added(text: str, mapping: yaml.MappingNode, entry: str) -> str:
    end = end_of(text, mapping.value[-1][1])
    if mapping.flow_style:
        return f"{text[:end]}, {entry}{text[end:]}"
    place = _line_end(text, end)
    indent = " " * mapping.value[0][0].start_mark.column
    return f"{text[:place]}\n{indent}{entry}{text[place:]}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {each}" for name, each in value.items()) + "}"
    return "[" + ", ".join(value) + "]"


def _by_hand(reason: str, split_bp: Mapping[str, int], fallback: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"the file cannot be changed without changing something else: {reason}. Do it by hand: "
        f"keep the applications of {', '.join(split_bp)}, and set split: {_flow(split_bp)}, "
        f"fallback: {_flow(fallback)}"
    )
