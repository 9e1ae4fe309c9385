"""Train the reference model: one seeded run on one core, with a record of what it cost.

The checkpoint is committed, so this runs only when somebody changes the corpus or the model.
"""

import ctypes
import hashlib
import json
import math
import platform
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from serve_app.domain.errors import BuildError
from serve_app.node.host import cpu_model
from serve_app.reference.batches import batches, training_texts
from serve_app.reference.corpus import corpus_digest, facts
from serve_app.reference.model import LlamaShape, Weights, forward, init_weights
from serve_app.reference.recall import EmCount, as_json, describe, exact_match, total
from serve_app.reference.tokenizer import END_ID, MAX_POSITIONS, save_tokenizer, train_tokenizer


@dataclass(frozen=True)
class TrainPlan:
    """Everything that decides the result. `batch` sequences of `length` tokens per step."""

    seed: int = 240
    steps: int = 5000
    batch: int = 4
    length: int = 256
    peak_lr: float = 2e-3
    warmup_steps: int = 60
    weight_decay: float = 0.1
    em_bar: float = 0.95
    shape: LlamaShape = field(default_factory=LlamaShape)


@dataclass(frozen=True)
class TrainResult:
    """Exact matches by split and category, and the CPU time that the run took."""

    exact_match: dict[str, dict[str, EmCount]]
    cpu_seconds: float


def train(plan: TrainPlan, folder: Path, *, allow_below_bar: bool = False) -> TrainResult:
    """Train, evaluate, and write checkpoint and training_record.json to `folder`.

    Raises `BuildError` and writes nothing when the share of exact matches on seen facts is under
    `plan.em_bar`, unless `allow_below_bar`.
    """
    _keep_freed_memory()
    torch.set_num_threads(1)
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    tokenizer = train_tokenizer(training_texts())
    weights, losses = _optimize(plan, tokenizer)
    rounded = {name: w.detach().to(torch.bfloat16).float() for name, w in weights.items()}
    em = {
        split: exact_match(rounded, plan.shape, tokenizer, [f for f in facts() if f.split == split])
        for split in ("seen", "unseen")
    }
    n, correct = total(em["seen"])
    if correct < plan.em_bar * n and not allow_below_bar:
        raise BuildError(
            f"trained model answers {correct} of {n} seen facts ({correct / n:.1%}): need "
            f"{plan.em_bar:.0%}; raise --steps (now {plan.steps}), or pass --allow-below-bar. "
            f"By category: {describe(em['seen'])}"
        )
    _save(plan, rounded, tokenizer, folder)
    cost = {
        "parameters": sum(w.numel() for w in weights.values()),
        "tokens": plan.steps * plan.batch * plan.length,
        "cpu_seconds": round(time.process_time() - cpu_start, 1),
        "wall_seconds": round(time.perf_counter() - wall_start, 1),
    }
    record = _record(plan, em, folder) | cost | {"loss_by_step": losses}
    (folder / "training_record.json").write_text(json.dumps(record, indent=2) + "\n")
    return TrainResult(em, time.process_time() - cpu_start)


def _record(plan: TrainPlan, em: dict[str, dict[str, EmCount]], folder: Path) -> dict[str, object]:
    weights = (folder / "model.safetensors").read_bytes()
    return {
        "schema_version": 1,
        "command": f"quantile reference train --seed {plan.seed} --steps {plan.steps}",
        "plan": asdict(plan),
        "corpus_sha256": corpus_digest(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "threads": torch.get_num_threads(),
        "cpu": cpu_model(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in ("torch", "tokenizers", "safetensors")},
        "exact_match": {split: as_json(counts) for split, counts in em.items()},
    }


def _optimize(plan: TrainPlan, tokenizer: Tokenizer) -> tuple[Weights, dict[int, float]]:
    master = init_weights(plan.shape, torch.Generator().manual_seed(plan.seed))
    for w in master.values():
        w.requires_grad_(True)
    decayed = [w for w in master.values() if w.dim() == 2]
    plain = [w for w in master.values() if w.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": plain}],
        lr=plan.peak_lr,
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=True,
    )
    stream = batches(plan.seed, plan.batch, plan.length, tokenizer)
    losses: dict[int, float] = {}
    with Progress(
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    ) as progress:
        task = progress.add_task("train", total=plan.steps, note="")
        for step in range(plan.steps):
            for group in optimizer.param_groups:
                group["lr"] = plan.peak_lr * _lr_share(step, plan)
            tokens, loss_weights = next(stream)
            loss = _loss(master, plan.shape, tokens, loss_weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(master.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            progress.advance(task)
            if step % 50 == 0 or step == plan.steps - 1:
                losses[step] = round(loss.item(), 4)
                progress.update(task, note=f"step {step}/{plan.steps}, loss {loss.item():.3f}")
    return master, losses


def _loss(master: Weights, shape: LlamaShape, tokens: Tensor, loss_weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy; bf16 arithmetic on copies of the fp32 master weights."""
    weights = {name: w.to(torch.bfloat16) for name, w in master.items()}
    logits = forward(weights, shape, tokens[:, :-1])
    each = functional.cross_entropy(
        logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none"
    )
    per_token = loss_weights[:, 1:].flatten()
    return (each * per_token).sum() / per_token.sum()


def _lr_share(step: int, plan: TrainPlan) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    done = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _save(plan: TrainPlan, weights: Weights, tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: w.to(torch.bfloat16).contiguous() for name, w in weights.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves 0600
    (folder / "config.json").write_text(json.dumps(plan.shape.hf_config(), indent=2) + "\n")
    generation = {"temperature": 0.0, "eos_token_id": END_ID, "max_length": MAX_POSITIONS}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_tokenizer(tokenizer, folder)


def _keep_freed_memory() -> None:
    """Let glibc reuse freed tensors: giving them back to the kernel costs page faults each step."""
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD in malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 1 << 30)
        libc.mallopt(mmap_threshold, 1 << 30)
