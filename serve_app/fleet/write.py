"""Put planned numbers into a Serve config file and leave every other byte of it as it is.

What comes out is loaded and held against what went in: either exactly the planned numbers differ,
or ConfigError is raised and the file stays as it was. A variant's own alias of its `gpu` or
`engine`, as its autoscaling policy has one, goes with it.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from serve_app.config.serve_file import VARIANT_IMPORT
from serve_app.domain.errors import ConfigError
from serve_app.fleet.yaml_edit import in_flow, with_values

Planned = Mapping[str, Mapping[str, Any]]
"""Sections of a variant's args (`engine`, `gpu`) and the scalars to set in them."""


def write_planned(path: Path, planned: Mapping[str, Planned]) -> bool:
    """Set the planned numbers of each variant, by its name; whether that changed the file.

    Readers see the old file or the new one; its mode, and a link to it, stay. Raises ConfigError,
    the file untouched, where `set_planned` does or the file cannot be read or written.
    """
    try:
        before = path.read_bytes().decode()
        after = set_planned(before, planned)
        if after != before:
            replace_file(path.resolve(), after.encode())
    except OSError as error:
        raise ConfigError(f"cannot put numbers into {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}") from None
    return after != before


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file that exists: readers see the old or the new one."""
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        shutil.copymode(path, unfinished)
        Path(unfinished).replace(path)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def set_planned(text: str, planned: Mapping[str, Planned]) -> str:
    """`text` with the planned numbers in it, fractions rounded to Ray's grain of 0.0001.

    Raises ConfigError for an unknown variant, and for text in which the numbers cannot be set
    without changing something else: a variant without a plan may share what would change.
    """
    content = load_applications(text)
    names = variant_places(content)
    missing = [name for name in planned if name not in names.values()]
    if missing:
        have = ", ".join(names.values())
        raise ConfigError(f"the file has no variant {', '.join(missing)}; has {have}")
    wished = {
        index: {"args": _rounded(planned[name])} for index, name in names.items() if name in planned
    }
    applications = list(content["applications"])
    for index, values in wished.items():
        applications[index] = _wanted(applications[index], values)
    try:
        after = _edited(text, wished)
        found = load_applications(after)
    except ConfigError as error:
        raise _by_hand(str(error), planned) from None
    wrong = [
        names.get(index, f"application {index + 1}")
        for index, (one, other) in enumerate(zip(found["applications"], applications, strict=True))
        if not _same(one, other)
    ]
    if wrong:
        raise _by_hand(f"{', '.join(wrong)} would come out otherwise, by an alias or `<<`", planned)
    if not _same(found, {**content, "applications": applications}):
        raise _by_hand("it would change more than the variants", planned)
    return after


def _edited(text: str, wished: Mapping[int, Mapping[str, Any]]) -> str:
    # In the file's order an anchor's numbers stand before those that take them by alias are looked
    # at. The second time finds what did not differ until a later part of its variant changed.
    for index in [*wished, *wished]:
        lacking = _lacking(load_applications(text)["applications"][index], wished[index])
        if lacking:
            text = with_values(text, index, lacking)
    return text


def load_applications(text: str) -> dict[str, Any]:
    """A Serve config file's content. Raises ConfigError if it is none."""
    try:
        content = yaml.safe_load(text)  # as Ray Serve does; the C loader takes more, and less
    except yaml.YAMLError as error:
        raise ConfigError(f"no YAML that Ray Serve can load: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("applications"), list):
        raise ConfigError("no Ray Serve config: it needs a list `applications`")
    return content


def variant_places(content: Mapping[str, Any]) -> dict[int, str]:
    """The variants' names by their place among the applications."""
    found = {}
    for index, application in enumerate(content["applications"]):
        match application:
            case {"import_path": path, "args": {"name": str(name)}} if path == VARIANT_IMPORT:
                found[index] = name
    return found


def _rounded(planned: Planned) -> dict[str, dict[str, Any]]:
    return {
        section: {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in numbers.items()
        }
        for section, numbers in planned.items()
    }


def _by_hand(reason: str, planned: Mapping[str, Planned]) -> ConfigError:
    numbers = "".join(f"\n  {name}: {in_flow(sections)}" for name, sections in planned.items())
    return ConfigError(
        f"--write cannot set these numbers alone: {reason}. The file is as it was. Write them into "
        f"the variants' args by hand, and where a mapping is shared write it out:{numbers}"
    )


def _wanted(application: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The application with the values in its args, and in what takes a section by alias."""
    args = application["args"]
    new = {
        id(args[section]): _updated(args[section], numbers)
        for section, numbers in values["args"].items()
        if isinstance(args.get(section), dict)
    }

    def follow(value: Any) -> Any:
        if isinstance(value, list):
            return [follow(each) for each in value]
        if isinstance(value, dict):
            return new.get(id(value)) or {name: follow(each) for name, each in value.items()}
        return value

    return _updated(follow(application), values)


def _updated(have: Any, wished: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(have, dict | None):
        raise ConfigError(f"{have!r} stands where a mapping must, to take {in_flow(wished)}")
    have = have or {}
    new = {
        name: _updated(have.get(name), value) if isinstance(value, Mapping) else value
        for name, value in wished.items()
    }
    return {**have, **new}


def _lacking(have: Any, wished: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `wished` that `have` does not hold yet."""
    lacking = {}
    for name, value in wished.items():
        found = (have or {}).get(name)
        if isinstance(value, Mapping):
            value = _lacking(found, value)
            if value:
                lacking[name] = value
        elif not _same(found, value):
            lacking[name] = value
    return lacking


def _same(one: Any, other: Any) -> bool:
    """Whether both are equal and of one type: YAML's 1, 1.0 and true are equal to Python."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other) or repr(one) == repr(other)  # a NaN equals nothing
