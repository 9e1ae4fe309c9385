"""Make variants: the process of the quantizers' own environment, whose transformers is another.

    PYTHONPATH=. .venv-quantize/bin/python -m serve_app.quantize.job order.json

Per variant it writes the weights, `quantile.json` (what it is, how it was made) and `reference.npz`
(what a forward pass must give), and tells each state as a line of JSON on standard output
(`serve_app.quantize.order`); what the libraries print goes to standard error. A variant that cannot
be made is told as failed, and the next one is made.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from serve_app.domain.errors import QuantileError
from serve_app.quantize import reference_pass
from serve_app.quantize.calibration import (
    Encode,
    as_messages,
    calibration_rows,
    file_source,
    reference_source,
)
from serve_app.quantize.layouts import dequantize
from serve_app.quantize.order import Event, Item, Order
from serve_app.quantize.pins import check_versions
from serve_app.quantize.record import write_record
from serve_app.quantize.twin import write_twin
from serve_app.quantize.weight_error import weight_errors
from serve_app.reference.corpus import check_exchanges
from serve_app.reference.locate import QUANTIZE_JSON
from serve_app.reference.logprobs import REFERENCE_NPZ, save_reference

COPIED = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
"""Taken over from the base as they are: what the quantizer writes in their place may differ."""

MAKERS = {
    "copy": "serve_app.quantize.make_copy",
    "llm-compressor": "serve_app.quantize.make_llmcompressor",
    "squeezellm": "serve_app.quantize.make_squeezellm",
    "gguf": "serve_app.quantize.make_gguf",
}
"""Module with `make(recipe, base, out, calibration_rows)` for each tool of a recipe."""

Tell = Callable[[Event], None]


class Workshop:
    """What the variants of one order share: the base, its forward pass, the calibration text."""

    def __init__(self, order: Order) -> None:
        self.base = order.base
        self.source = (
            file_source(order.calibration_file) if order.calibration_file else reference_source()
        )
        self.encode = _encoder(AutoTokenizer.from_pretrained(order.base))
        self.rows = [self.encode(as_messages(each)) for each in check_exchanges()]
        model = reference_pass.base_model(order.base)
        self.base_passes = reference_pass.forward(model, self.rows)

    def make(self, item: Item, tell: Tell) -> None:
        """Make one variant. Raises `BuildError`, and whatever the libraries raise."""
        recipe, out = item.recipe, item.out
        started = time.perf_counter()
        torch.manual_seed(0)
        tell(Event(variant=recipe.name, state="quantizing"))
        rows = (
            calibration_rows(recipe.calibration, self.source, self.encode)
            if recipe.needs_calibration
            else []
        )
        import_module(MAKERS[recipe.make.tool]).make(recipe, self.base, out, rows)
        if recipe.make.tool != "gguf":  # which holds all of it in its one file
            for name in COPIED:
                if (self.base / name).is_file():
                    shutil.copy2(self.base / name, out)
        tell(Event(variant=recipe.name, state="measuring"))
        dense = dequantize(out, recipe.scheme.container)
        errors = weight_errors(dequantize(self.base, "plain"), dense)
        if recipe.make.tool == "copy":
            passes = self.base_passes
        else:
            model = reference_pass.variant_model(recipe, self.base, out, dense)
            passes = reference_pass.forward(model, self.rows)
            del model  # the twin needs its memory
        reference = reference_pass.as_reference(self.rows, passes, self.base_passes[0])
        save_reference(out / REFERENCE_NPZ, reference)
        write_record(
            out / QUANTIZE_JSON,
            recipe,
            self.base,
            calibration=(self.source, rows) if rows else None,
            errors=errors,
            in_flight=reference_pass.rounds_in_flight(recipe),
            wall_s=time.perf_counter() - started,
        )
        if item.twin is not None:
            write_twin(out, item.twin, dense, config_of=self.base)


def run(order: Order, tell: Tell) -> int:
    """Make every variant of the order. Returns how many could not be made."""
    check_versions()
    workshop = Workshop(order)
    n_failed = 0
    for item in order.items:
        try:
            workshop.make(item, tell)
        except Exception as error:
            n_failed += 1
            why = str(error) if isinstance(error, QuantileError) else repr(error)
            tell(Event(variant=item.recipe.name, state="failed", detail=why))
            if not isinstance(error, QuantileError):
                sys.excepthook(type(error), error, error.__traceback__)
        else:
            tell(Event(variant=item.recipe.name, state="made"))
    return n_failed


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Messages by the model's chat template; a model without one gets them line by line."""

    def encode(text: str | list[dict[str, str]]) -> list[int]:
        if not isinstance(text, str):
            if tokenizer.chat_template:
                text = tokenizer.apply_chat_template(text, tokenize=False)
            else:
                text = "\n".join(message["content"] for message in text) + "\n"
        tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    return encode


def main() -> None:
    """Carry out the order in the file that the command line names."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not stand between the events
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    def tell(event: Event) -> None:
        events.write(event.model_dump_json() + "\n")

    try:
        order = Order.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
        n_failed = run(order, tell)
    except QuantileError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    raise SystemExit(1 if n_failed else 0)


if __name__ == "__main__":
    main()
