"""How far quantized weights are from those they were made of, per layer and per kind of layer.

SmoothQuant and AWQ move factors from one layer into the next before they round: the pair computes
the same, the weights differ. Such factors are taken out before the weights are compared, so that
what is left is the rounding.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from serve_app.domain.errors import BuildError

Kind = Literal["attention", "feed-forward", "embedding", "head", "other"]

_FED_BY_NORM = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
_FEEDS = {"mlp.down_proj": "mlp.up_proj", "self_attn.o_proj": "self_attn.v_proj"}
"""Whose output channels are the other's input channels, one to one."""

MOVED = 0.9
"""Correlation of one layer's channel factors with the inverse of the next one's from which they
were moved on purpose: 0.999 after AWQ; rounding alone leaves them unrelated, at most 0.1."""


@dataclass(frozen=True)
class LayerError:
    """One matrix. `error` and `norm` are Frobenius norms of W - Wq and of W; `max_abs` is the
    largest |W - Wq|. `rescaled`: a factor that smoothing had moved was taken out before."""

    layer: str
    kind: Kind
    n_weights: int
    error: float
    norm: float
    max_abs: float
    rescaled: bool

    @property
    def relative(self) -> float | None:
        """||W - Wq|| / ||W||; None for a matrix of zeros."""
        return self.error / self.norm if self.norm else None


@dataclass(frozen=True)
class KindError:
    """All matrices of one kind as if they were one; `worst` is the layer with the largest error."""

    kind: Kind
    n_layers: int
    n_weights: int
    relative: float | None
    worst: str
    worst_relative: float | None


@dataclass(frozen=True)
class WeightErrors:
    """Every matrix of a checkpoint, in the base's order."""

    layers: tuple[LayerError, ...]

    @property
    def by_kind(self) -> tuple[KindError, ...]:
        """The sensitivity table's left side: what rounding cost each kind of layer."""
        kinds = dict.fromkeys(each.kind for each in self.layers)
        return tuple(
            _sum_up(kind, [each for each in self.layers if each.kind == kind]) for kind in kinds
        )

    def as_json(self) -> dict[str, Any]:
        """For quantile.json: layers that were changed, and the kinds."""
        return {
            "by_kind": {
                each.kind: {
                    "relative": each.relative,
                    "layers": each.n_layers,
                    "weights": each.n_weights,
                    "worst": each.worst,
                    "worst_relative": each.worst_relative,
                }
                for each in self.by_kind
            },
            "layers": [
                {
                    "name": each.layer,
                    "kind": each.kind,
                    "relative": each.relative,
                    "max_abs": each.max_abs,
                    "rescaled": each.rescaled,
                }
                for each in self.layers
                if each.error > 0
            ],
        }


def weight_errors(base: Mapping[str, Tensor], quantized: Mapping[str, Tensor]) -> WeightErrors:
    """Compare dense weights under the same names.

    Raises `BuildError` if a matrix of the base is missing or has another shape. A head that the
    quantized checkpoint ties to its embedding counts as the embedding.
    """
    return WeightErrors(tuple(_compare(base, quantized)))


def kind_of(name: str) -> Kind:
    """What a matrix of a decoder is for, by Hugging Face's names."""
    parts = name.split(".")
    if any("attn" in part or "attention" in part for part in parts):
        return "attention"
    if any(part in ("mlp", "feed_forward", "block_sparse_moe", "experts") for part in parts):
        return "feed-forward"
    if any("embed" in part for part in parts):
        return "embedding"
    return "head" if "lm_head" in parts else "other"


def _compare(base: Mapping[str, Tensor], quantized: Mapping[str, Tensor]) -> Iterator[LayerError]:
    for name, before in base.items():
        if before.ndim != 2 or (name == "lm_head.weight" and name not in quantized):
            continue
        if name not in quantized or quantized[name].shape != before.shape:
            have = tuple(quantized[name].shape) if name in quantized else "none"
            raise BuildError(
                f"{name} is {tuple(before.shape)} in the base, {have} in the quantized checkpoint"
            )
        layer = name.removesuffix(".weight")
        after = quantized[name].float()
        rows, columns = _row_factor(base, quantized, layer), _column_factor(base, quantized, layer)
        if rows is not None:
            after = after * rows[:, None]
        if columns is not None:
            after = after * columns
        difference = before.float() - after
        yield LayerError(
            layer=layer,
            kind=kind_of(layer),
            n_weights=before.numel(),
            error=float(torch.linalg.vector_norm(difference, dtype=torch.float64)),
            norm=float(torch.linalg.vector_norm(before.float(), dtype=torch.float64)),
            max_abs=float(difference.abs().max()),
            rescaled=rows is not None or columns is not None,
        )


def _column_factor(
    base: Mapping[str, Tensor], quantized: Mapping[str, Tensor], layer: str
) -> Tensor | None:
    """What undoes factors that were moved into the input channels, `[K]`; None if none were."""
    block, name = _split(layer)
    for norm, fed in _FED_BY_NORM.items():
        key = f"{block}.{norm}.weight"
        if name in fed and key in base and key in quantized:
            return _norm_factor(base[key].float(), quantized[key].float())
    if feeder := _FEEDS.get(name):
        moved = _moved(base, quantized, f"{block}.{feeder}", layer)
        return None if moved is None else 1 / moved
    return None


def _row_factor(
    base: Mapping[str, Tensor], quantized: Mapping[str, Tensor], layer: str
) -> Tensor | None:
    """What undoes factors that were moved out of the output channels, `[N]`; None if none were."""
    block, name = _split(layer)
    for fed, feeder in _FEEDS.items():
        if name == feeder:
            return _moved(base, quantized, layer, f"{block}.{fed}")
    return None


def _norm_factor(before: Tensor, after: Tensor) -> Tensor | None:
    if torch.equal(before, after):
        return None
    return torch.where(before == 0, torch.ones_like(after), after / before)


def _moved(
    base: Mapping[str, Tensor], quantized: Mapping[str, Tensor], feeder: str, fed: str
) -> Tensor | None:
    """Factors that went from `feeder`'s output channels into `fed`'s input channels; None if none.

    Least squares gives each channel's factor on both sides; a move shows as one being the other's
    inverse in all channels.
    """
    names = f"{feeder}.weight", f"{fed}.weight"
    if any(name not in tensors for name in names for tensors in (base, quantized)):
        return None
    (out_before, in_before), (out_after, in_after) = (
        [tensors[name].float() for name in names] for tensors in (base, quantized)
    )
    if out_before.shape[0] != in_before.shape[1]:
        return None
    columns = _column_factor(base, quantized, feeder)
    out_after = out_after if columns is None else out_after * columns
    out_factor = _least_squares(out_before, out_after, dim=1)
    in_factor = _least_squares(in_before, in_after, dim=0)
    known = (out_factor > 0) & (in_factor > 0)
    if int(known.sum()) < 3:
        return None
    out_log, in_log = out_factor[known].log(), in_factor[known].log()
    # Two constants have no correlation: NaN, which is no move.
    related = float(torch.corrcoef(torch.stack([-out_log, in_log]))[0, 1])
    if not related > MOVED:
        return None
    moved = torch.ones_like(out_factor)
    moved[known] = ((in_log - out_log) / 2).exp()
    return moved


def _least_squares(before: Tensor, after: Tensor, dim: int) -> Tensor:
    """The factor f per channel that brings f * before closest to after."""
    return (before * after).sum(dim) / (before * before).sum(dim).clamp_min(1e-30)


def _split(layer: str) -> tuple[str, str]:
    """`model.layers.3`, `mlp.up_proj`."""
    block, *name = layer.rsplit(".", 2)
    return block, ".".join(name)


def _sum_up(kind: Kind, layers: list[LayerError]) -> KindError:
    norm = math.hypot(*(each.norm for each in layers))
    worst = max(layers, key=lambda each: each.relative or 0.0)
    return KindError(
        kind=kind,
        n_layers=len(layers),
        n_weights=sum(each.n_weights for each in layers),
        relative=math.hypot(*(each.error for each in layers)) / norm if norm else None,
        worst=worst.layer,
        worst_relative=worst.relative,
    )
