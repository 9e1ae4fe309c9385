"""llama.cpp's process: its own OpenAI server on a Unix socket, and what that server does not do.

Started by `llamacpp_child`: `python -m serve_app.engines.llamacpp_process '<ChildSettings>'`. The
server answers on the socket. On standard input come questions about prompts, a line of JSON each,
answered in order on standard output: the log-probabilities of given tokens, which llama.cpp's
server does not tell. When standard input ends, the replica is gone or wants this process gone.
"""

import ctypes
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from serve_app.domain.errors import QuantileError
from serve_app.engines.llamacpp_logprobs import score_prompt
from serve_app.engines.llamacpp_model import LlamaModel
from serve_app.node.registry import register_engine_process

_PR_SET_PDEATHSIG = 1


class ChildSettings(msgspec.Struct):
    """What to load and how. `context_length` is that of each of the `n_slots` requests at once."""

    file: str
    socket: str
    parent_pid: int
    names: tuple[str, ...]
    context_length: int
    n_slots: int
    n_batch: int
    n_threads: int


class Question(msgspec.Struct):
    """Score a prompt, text or token ids; `n_top` most likely tokens for each position."""

    prompt: str | list[int]
    n_top: int
    add_special: bool = True


class Entry(msgspec.Struct, array_like=True):
    """A token, its text and its logprob (nats)."""

    token: int
    text: str
    logprob: float


class Answer(msgspec.Struct):
    """`serve_app.engines.llamacpp_logprobs.PromptScore` with texts, or what is wrong."""

    tokens: list[int] = []
    texts: list[str] = []
    logprobs: list[float] = []
    top: list[list[Entry]] = []
    error: str | None = None
    caller_is_wrong: bool = False


def serve(settings: ChildSettings) -> object:
    """Start llama.cpp's server; it runs until the object that is returned goes."""
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = settings.file
    params.model_alias = set(settings.names[:1])
    params.hostnames = [settings.socket]
    params.n_ctx = settings.context_length * settings.n_slots
    params.n_parallel = settings.n_slots
    params.n_batch = settings.n_batch
    params.n_threads_http = settings.n_slots + 64  # each open request holds one
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.n_threads
    params.cache_ram_mib = 0  # else up to 8 GiB of earlier prompts, which no plan knows
    params.cache_idle_slots = False
    params.fit_params = False
    params.endpoint_metrics = True
    params.endpoint_slots = False
    params.ui = False
    params.verbosity = 1
    # vLLM's defaults, so that variants of one model sample alike; the file's own come first.
    params.sampling.temp, params.sampling.top_p = 1.0, 1.0
    params.sampling.top_k, params.sampling.min_p = 0, 0.0
    server: object = xllamacpp.Server(params)
    return server


def answer(settings: ChildSettings, loaded: list[LlamaModel], line: bytes) -> Answer:
    """One question. The model is loaded a second time, at the first one."""
    try:
        question = msgspec.json.decode(line, type=Question)
        if not loaded:
            loaded.append(
                LlamaModel(
                    Path(settings.file),
                    context_length=settings.context_length,
                    n_threads=settings.n_threads,
                )
            )
        model = loaded[0]
        tokens = question.prompt
        if isinstance(tokens, str):
            tokens = model.tokenize(tokens, add_special=question.add_special)
        score = score_prompt(model, tokens, question.n_top)
    except QuantileError as error:
        return Answer(error=str(error), caller_is_wrong=error.http_status < 500)

    def text(token: int) -> str:
        return model.piece(token).decode(errors="replace")

    return Answer(
        tokens,
        [text(token) for token in tokens],
        score.logprobs,
        [[Entry(token, text(token), value) for token, value in entry] for entry in score.top],
    )


def _die_with_parent(parent_pid: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)  # it died before the kernel was asked


def main() -> None:
    """Serve until standard input ends."""
    settings = msgspec.json.decode(sys.argv[1], type=ChildSettings)
    _die_with_parent(settings.parent_pid)
    register_engine_process()
    out: BinaryIO = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what llama.cpp prints must not stand between the answers
    server = serve(settings)
    out.write(msgspec.json.encode(Answer()) + b"\n")
    loaded: list[LlamaModel] = []
    for line in sys.stdin.buffer:
        out.write(msgspec.json.encode(answer(settings, loaded, line)) + b"\n")
    del server
    os._exit(0)


if __name__ == "__main__":
    main()
