"""Start `serve_app.quantize.job` in the quantizers' own environment."""

import os
import subprocess
import tempfile
from pathlib import Path

import serve_app
from serve_app.domain.errors import BuildError, ConfigError
from serve_app.quantize.recipes import Recipe

_PACKAGE = Path(serve_app.__file__).parent
LOG_LINES = 25


def quantize_python() -> Path:
    """`$QUANTIZE_PYTHON`, or .venv-quantize's beside the package. Raises `ConfigError`."""
    named = os.environ.get("QUANTIZE_PYTHON")
    python = Path(named) if named else _PACKAGE.parent / ".venv-quantize" / "bin" / "python"
    if not python.is_file():
        raise ConfigError(
            f"the quantizers' environment is missing: need {python}; make a virtual environment "
            f"there with `pip install -r {_PACKAGE / 'quantize' / 'constraints.txt'}`, or set "
            "QUANTIZE_PYTHON to the python of one"
        )
    return python


def run_job(recipe: Recipe, base: Path, out: Path) -> None:
    """Make the variant of checkpoint folder `base` in `out`. Raises `BuildError` with the job's
    last lines if it fails."""
    python = quantize_python()
    with tempfile.TemporaryDirectory(prefix="quantile-job-") as scratch:
        # Only our package is put on the path: the folder around it may be a site-packages with
        # the engines' torch and transformers.
        (Path(scratch) / "serve_app").symlink_to(_PACKAGE)
        env = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": scratch, "HF_HUB_OFFLINE": "1"}
        command = [str(python), "-m", "serve_app.quantize.job", "--variant", recipe.name]
        command += ["--base", str(base), "--out", str(out)]
        done = subprocess.run(
            command, env=env, cwd=scratch, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-LOG_LINES:])
        raise BuildError(
            f"making {recipe.name!r} failed with exit code {done.returncode} ({python}); "
            f"the job's last lines:\n{tail}"
        )
