"""Find and read recipes: `configs/quantize/<name>.yaml`, or a file of the user's own."""

import functools
from pathlib import Path

import serve_app
from serve_app.config.parse import parse, read_yaml
from serve_app.domain.errors import ConfigError
from serve_app.quantize.recipes import Recipe

DEMO = ("baseline", "int8", "gptq", "awq")
"""The recipes whose variants `configs/local.yaml` serves."""

_PACKAGE = Path(serve_app.__file__).parent


def recipes_dir() -> Path:
    """The folder of the shipped recipes: in the wheel beside this module, else the repository's."""
    packaged = _PACKAGE / "quantize" / "recipes"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "configs" / "quantize"


@functools.cache
def recipes() -> dict[str, Recipe]:
    """Every shipped recipe by name: the demo's first, then by name. Raises `ConfigError`."""
    found = {path.stem: read_recipe(path) for path in sorted(recipes_dir().glob("*.yaml"))}
    if missing := [name for name in DEMO if name not in found]:
        raise ConfigError(f"{recipes_dir()} lacks {', '.join(missing)}: restore the files")
    return {name: found[name] for name in DEMO} | found


def recipe(name: str) -> Recipe:
    """The shipped recipe of that name, or the one in a file `*.yaml`. Raises `ConfigError`."""
    if name.endswith(".yaml"):
        return read_recipe(Path(name))
    try:
        return recipes()[name]
    except KeyError:
        raise ConfigError(
            f"unknown recipe {name!r}: need a file *.yaml, or one of {', '.join(recipes())}"
        ) from None


def read_recipe(path: Path) -> Recipe:
    """A recipe file; its name is the file's. Raises `ConfigError`."""
    values = read_yaml(path, "the recipe ")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping with method, make, engine, gate")
    if "name" in values:
        raise ConfigError(f"{path}: drop `name`: a recipe is called as its file is")
    return parse(Recipe, {"name": path.stem, **values}, where=str(path))
