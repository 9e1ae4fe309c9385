"""What vLLM runs at the start of every process of an engine.

As the entry point `vllm.platform_plugins`, while the process imports vLLM, and again as
`vllm.general_plugins`, which an engine core loads only after it has shaken hands with its replica:
if that has died meanwhile, it waits five minutes for the answer.

1. On CPUs with AMX the kernel must be asked for the tile registers in each process, or the first
   matrix product dies with SIGILL.
2. An engine process must not outlive the replica that owns it: if the replica is killed outright,
   nobody is left to stop the engine, and its memory blocks whatever starts next (vllm #55510).
   The kernel is asked to kill the process when its parent dies.
3. What the kernel misses is found by a record of the process, which each writes of itself.
4. vLLM is told of the quantization that it lacks, SqueezeLLM (`vllm_squeezellm`),
   and its optional GGUF plugin is mended (`vllm_gguf`).
5. vLLM is given a kernel for 4-bit weights on CPUs without AMX (`vllm_int4pack`).
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from importlib.util import find_spec

from serve_app.node.processes import is_alive
from serve_app.node.registry import owner_of_this_process, register_engine_process

_PR_SET_PDEATHSIG = 1


def platform() -> None:
    """Called by vLLM when it asks which platforms there are; answers that this is none."""
    _belong_to_replica()


def register() -> None:
    """Called by vLLM, possibly several times in one process: every step may be repeated."""
    _request_amx()
    _belong_to_replica()
    _offer_quantizations()
    _offer_kernels()
    _mend_gguf()


def _belong_to_replica() -> None:
    if sys.platform.startswith("linux"):
        _die_with_parent()
        register_engine_process()


def _request_amx() -> None:
    torch = sys.modules.get("torch")
    init_amx = getattr(getattr(torch, "cpu", None), "_init_amx", None)
    if init_amx is not None:
        init_amx()


def _offer_quantizations() -> None:
    """Three small modules of ours: 3 ms, next to vLLM's seconds."""
    if "vllm" in sys.modules:
        from serve_app.engines import vllm_squeezellm

        vllm_squeezellm.offer()


def _offer_kernels() -> None:
    """An engine imports vLLM's kernels anyway; its front end takes 0.3 s longer."""
    if "vllm" in sys.modules:
        from serve_app.engines import vllm_int4pack

        vllm_int4pack.offer()


def _mend_gguf() -> None:
    """Nothing without vLLM's optional GGUF plugin: a look at the installed packages, 0.1 ms."""
    if "vllm" in sys.modules and find_spec("vllm_gguf_plugin") is not None:
        from serve_app.engines import vllm_gguf

        vllm_gguf.mend()


def _die_with_parent() -> None:
    """Only in vLLM's own child processes; the replica itself belongs to Ray.

    While a spawned process imports vLLM, multiprocessing has not told it its parent yet.
    """
    parent, owner = multiprocessing.parent_process(), owner_of_this_process()
    if parent is None and owner is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    is_orphan = parent is not None and os.getppid() != parent.pid
    if is_orphan or (owner is not None and not is_alive(owner.process)):
        os.kill(os.getpid(), signal.SIGKILL)  # they died before the kernel was asked
