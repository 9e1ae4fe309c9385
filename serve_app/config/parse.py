"""Read YAML, and turn pydantic's findings into one ConfigError that says what to change."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from serve_app.domain.errors import ConfigError

Schema = TypeVar("Schema", bound=BaseModel)


def read_yaml(path: Path, what: str = "") -> Any:
    """The content of a YAML file, `what` it is in errors. Raises ConfigError."""
    try:
        return yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    except OSError as error:
        raise ConfigError(f"cannot read {what}{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None


def parse(schema: type[Schema], values: Mapping[str, Any], *, where: str) -> Schema:
    """`values` checked against `schema`. Raises ConfigError that names `where` and each fault."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_fault(item, schema) for item in error.errors())
        raise ConfigError(f"{where}: {faults}") from None


def _fault(item: Any, schema: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in item["loc"]) or "(top level)"
    if item["type"] == "extra_forbidden":
        return f"{path} is not a known key; known here: {', '.join(_keys(item['loc'], schema))}"
    if item["type"] == "missing":
        return f"{path} is required"
    return f"{path}: {item['msg']} (have {item['input']!r})"


def _keys(loc: tuple[Any, ...], schema: type[BaseModel]) -> list[str]:
    """The keys that are known where the unknown one stood."""
    model: Any = schema
    for part in loc[:-1]:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return sorted(model.model_fields)
