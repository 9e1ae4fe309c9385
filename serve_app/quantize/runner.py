"""Start `serve_app.quantize.job` in the quantizers' own environment, and hear how it goes."""

import contextlib
import os
import re
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import serve_app
from serve_app.domain.errors import BuildError, ConfigError
from serve_app.node.host import threads_for
from serve_app.quantize.order import Event, Item, Order

_PACKAGE = Path(serve_app.__file__).parent
LOG_LINES = 25
_PROGRESS = re.compile(r"\((\d+)/(\d+)\): (\w+)")
"""`(3/32): Calibrating`, as llm-compressor shows the layer that it is at."""

Hear = Callable[[Event], None]


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


def run_job(
    base: Path, items: Sequence[Item], hear: Hear, calibration_file: Path | None = None
) -> None:
    """Make the variants of checkpoint folder `base`, each in its own empty folder.

    Every variant is heard of: `made`, or `failed` with the reason. A process that dies has failed
    the variant that it was at, and another one goes on with the rest. Raises `BuildError` if not
    even one was begun.
    """
    waiting = list(items)
    while waiting:
        ended: list[str] = []
        begun: list[str] = []

        def told(event: Event, ended: list[str] = ended, begun: list[str] = begun) -> None:
            (begun if event.state in ("quantizing", "measuring") else ended).append(event.variant)
            hear(event)

        code, tail = _run(base, waiting, told, calibration_file)
        if not begun:
            raise BuildError(
                f"the quantization job failed with exit code {code} ({quantize_python()}); "
                f"its last lines:\n{tail}"
            )
        left = [item for item in waiting if item.recipe.name not in ended]
        if left and left[0].recipe.name in begun:
            lost = left.pop(0).recipe.name
            why = f"the job ended with exit code {code} while making it; its last lines:\n{tail}"
            hear(Event(variant=lost, state="failed", detail=why))
        waiting = left


def _run(
    base: Path, items: Sequence[Item], hear: Hear, calibration_file: Path | None
) -> tuple[int, str]:
    """Exit code and last lines of one process."""
    python = quantize_python()
    with tempfile.TemporaryDirectory(prefix="quantile-job-") as scratch:
        # Only our package is put on the path: the folder around it may be a site-packages with
        # the engines' torch and transformers.
        (Path(scratch) / "serve_app").symlink_to(_PACKAGE)
        text = calibration_file.absolute() if calibration_file else None  # it runs elsewhere
        order = Order(base=base.absolute(), items=tuple(items), calibration_file=text)
        path = Path(scratch) / "order.json"
        path.write_text(order.model_dump_json(), encoding="utf-8")
        env = {
            "OMP_NUM_THREADS": threads_for([base]),
            **os.environ,
            "PYTHONPATH": scratch,
            "HF_HUB_OFFLINE": "1",
        }
        tail: deque[str] = deque(maxlen=LOG_LINES)
        with subprocess.Popen(
            [str(python), "-m", "serve_app.quantize.job", str(path)],
            env=env,
            cwd=scratch,
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            current: list[str] = []
            listener = threading.Thread(target=_listen, args=(process.stderr, tail, current, hear))
            listener.start()
            try:
                for line in process.stdout:
                    event = Event.model_validate_json(line)
                    current[:] = [event.variant] if event.state == "quantizing" else []
                    hear(event)
                code = process.wait()
            except BaseException:
                process.kill()
                raise
            finally:
                listener.join()
    return code, "\n".join(tail)


def _listen(stream: IO[str], tail: deque[str], current: list[str], hear: Hear) -> None:
    """Keep the last lines; tell the layer that the quantizer is at."""
    seen = ""
    for line in stream:  # tqdm's carriage returns are line ends here
        if line.strip():
            tail.append(line.rstrip())
        found, variant = _PROGRESS.search(line), next(iter(current), None)
        if found and variant and found[0] != seen:
            seen = found[0]
            detail = f"layer {found[1]} of {found[2]}"
            with contextlib.suppress(Exception):  # or the job would wait for a full pipe to drain
                hear(Event(variant=variant, state="quantizing", detail=detail))
