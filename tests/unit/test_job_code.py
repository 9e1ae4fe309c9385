"""The cache's key covers the code that decides a variant's bytes: all that the job imports."""

import ast
from pathlib import Path

from serve_app.reference.build import JOB_CODE

PACKAGE = Path(__file__).parents[2] / "serve_app"
OTHERWISE_COVERED = {
    "quantize/recipes.py",  # by the recipe's own digest
    "quantize/pins.py",  # by the versions in it
    "reference/stories.py",  # by the corpus's digest
}
NO_BYTES = ("config/", "domain/", "store/", "quantize/order.py", "reference/locate.py",
            "engines/llamacpp_", "engines/__init__", "planning/")  # fmt: skip
"""Words, paths, errors, readers; and llama.cpp's interface, which is refused in another version."""


def modules_of(path: Path) -> set[Path]:
    """Files of ours that a module imports; the makers are named in strings."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and str(node.value).startswith("serve_app.quantize."):
            names = [str(node.value)]
        else:
            continue
        for name in names:
            file = PACKAGE.parent / (name.replace(".", "/") + ".py")
            if file.is_file():
                found.add(file)
            elif file.with_suffix("").is_dir() and name == "serve_app.quantize.layouts":
                found |= set(file.with_suffix("").glob("*.py"))
    return found


def test_every_module_of_the_job_is_in_the_key():
    waiting, seen = {PACKAGE / "quantize" / "job.py"}, set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        waiting |= modules_of(path) - seen
    names = {path.relative_to(PACKAGE).as_posix() for path in seen}
    assert "quantize/make_gguf.py" in names  # or this test sees nothing
    assert "quantize/layouts/awq.py" in names
    covered = {
        path.relative_to(PACKAGE).as_posix()
        for pattern in JOB_CODE
        for path in PACKAGE.glob(pattern)
    }
    forgotten = {
        name
        for name in names - covered - OTHERWISE_COVERED
        if not name.startswith(NO_BYTES) and name != "__init__.py"
    }
    assert not forgotten
