"""How much the loss minds a change of each weight: the diagonal of the Fisher information.

As SqueezeLLM has it (arXiv 2306.07629, eq. 5): the square of the loss's gradient, averaged over
calibration rows. A row's gradient is that of the sum of its tokens' cross entropies.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Progress = Callable[[int, int], None]
"""Told rows done, rows in all."""


def diagonal_fisher(
    model: torch.nn.Module,
    parameters: Mapping[str, torch.nn.Parameter],
    rows: Sequence[Sequence[int]],
    progress: Progress = lambda done, total: None,
) -> dict[str, Tensor]:
    """Mean squared gradient of each parameter, float32, of a causal model that is left unchanged.

    Holds 4 bytes per weight of `parameters` and the gradient of one parameter at a time, beside the
    model and one row's activations; takes a forward and a backward pass per row. Raises ValueError
    where a row has fewer than two tokens, or the loss is not finite.
    """
    if not rows or min(map(len, rows)) < 2:
        raise ValueError("need calibration rows of at least two tokens")
    found = {
        name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in parameters.items()
    }
    wanted = {id(weight): found[name] for name, weight in parameters.items()}
    was_trained = [(weight, weight.requires_grad) for weight in model.parameters()]
    hooks = []
    try:
        for weight, _ in was_trained:
            weight.requires_grad_(id(weight) in wanted)
        for weight in parameters.values():
            hooks.append(weight.register_post_accumulate_grad_hook(_into(wanted[id(weight)])))
        device = next(iter(parameters.values())).device
        for done, row in enumerate(rows, 1):
            tokens = torch.tensor([list(row)], device=device)
            scores = model(input_ids=tokens).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(scores, tokens[0, 1:], reduction="sum")
            if not bool(torch.isfinite(loss)):
                raise ValueError(f"the model's loss on calibration row {done} is {loss.item()}")
            loss.backward()
            progress(done, len(rows))
    finally:
        for hook in hooks:
            hook.remove()
        for weight, trained in was_trained:
            weight.requires_grad_(trained)
    return {name: total.div_(len(rows)) for name, total in found.items()}


def _into(total: Tensor) -> Callable[[Tensor], None]:
    def add(weight: Tensor) -> None:
        assert weight.grad is not None
        total.add_(weight.grad.float() ** 2)
        weight.grad = None

    return add
