"""The C interface of llama.cpp, as the wheel `xllamacpp` brings it.

The wheel's Python side has llama.cpp's server only. Its one shared library exports the C functions
too, and those give what the server does not: quantized blocks, token ids, logits of every prompt
position, computed by the very kernels that serve. The structs below are those of `llama.h` at
build b11549; another version of the wheel is refused, and so is a library whose defaults are not
where the structs say (`serve_app/decisions/0012-gguf.md`).
"""

import ctypes as c
import importlib
from collections import deque
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from serve_app.domain.errors import ConfigError, EngineError

WHEEL, WHEEL_VERSION = "xllamacpp", "2026.10.11549"
LLAMA_CPP = "llama.cpp b11549"

_POINTERS = c.c_void_p
_LOG_LINES = 20


class ModelParams(c.Structure):
    """`llama_model_params`."""

    _fields_ = (
        ("devices", _POINTERS),
        ("tensor_buft_overrides", _POINTERS),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int32),
        ("load_mode", c.c_int32),
        ("lazy_mode", c.c_int32),
        ("main_gpu", c.c_int32),
        ("tensor_split", _POINTERS),
        ("progress_callback", _POINTERS),
        ("progress_callback_user_data", _POINTERS),
        ("kv_overrides", _POINTERS),
        ("vocab_only", c.c_bool),
        ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool),
        ("no_host", c.c_bool),
        ("no_alloc", c.c_bool),
        ("load_mtp", c.c_bool),
    )


class ContextParams(c.Structure):
    """`llama_context_params`."""

    _fields_ = (
        *((name, c.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        ("n_outputs_max", c.c_uint32),
        ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32),
        ("n_threads_batch", c.c_int32),
        ("ctx_type", c.c_int32),
        ("rope_scaling_type", c.c_int32),
        ("pooling_type", c.c_int32),
        ("attention_type", c.c_int32),
        ("flash_attn_type", c.c_int32),
        ("rope_freq_base", c.c_float),
        ("rope_freq_scale", c.c_float),
        ("yarn_ext_factor", c.c_float),
        ("yarn_attn_factor", c.c_float),
        ("yarn_beta_fast", c.c_float),
        ("yarn_beta_slow", c.c_float),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", _POINTERS),
        ("cb_eval_user_data", _POINTERS),
        ("type_k", c.c_int32),
        ("type_v", c.c_int32),
        ("moe_cache_size", c.c_size_t),
        ("abort_callback", _POINTERS),
        ("abort_callback_data", _POINTERS),
        ("embeddings", c.c_bool),
        ("offload_kqv", c.c_bool),
        ("no_perf", c.c_bool),
        ("op_offload", c.c_bool),
        ("swa_full", c.c_bool),
        ("kv_unified", c.c_bool),
        ("samplers", _POINTERS),
        ("n_samplers", c.c_size_t),
        ("ctx_other", _POINTERS),
    )


class Batch(c.Structure):
    """`llama_batch`."""

    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", _POINTERS),
        ("embd", _POINTERS),
        ("pos", _POINTERS),
        ("n_seq_id", _POINTERS),
        ("seq_id", _POINTERS),
        ("logits", _POINTERS),
    )


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (c.c_void_p, c.c_void_p)),
    "llama_print_system_info": (c.c_char_p, ()),
    "llama_model_load_from_file": (c.c_void_p, (c.c_char_p, ModelParams)),
    "llama_model_free": (None, (c.c_void_p,)),
    "llama_model_get_vocab": (c.c_void_p, (c.c_void_p,)),
    "llama_model_n_ctx_train": (c.c_int32, (c.c_void_p,)),
    "llama_vocab_n_tokens": (c.c_int32, (c.c_void_p,)),
    "llama_vocab_get_add_bos": (c.c_bool, (c.c_void_p,)),
    "llama_init_from_model": (c.c_void_p, (c.c_void_p, ContextParams)),
    "llama_free": (None, (c.c_void_p,)),
    "llama_get_memory": (c.c_void_p, (c.c_void_p,)),
    "llama_memory_clear": (None, (c.c_void_p, c.c_bool)),
    "llama_decode": (c.c_int32, (c.c_void_p, Batch)),
    "llama_get_logits": (c.POINTER(c.c_float), (c.c_void_p,)),
    "llama_tokenize": (
        c.c_int32,
        (c.c_void_p, c.c_char_p, c.c_int32, c.c_void_p, c.c_int32, c.c_bool, c.c_bool),
    ),
    "llama_token_to_piece": (
        c.c_int32,
        (c.c_void_p, c.c_int32, c.c_char_p, c.c_int32, c.c_int32, c.c_bool),
    ),
    "ggml_quantize_init": (None, (c.c_int32,)),
    "ggml_quantize_chunk": (
        c.c_size_t,
        (c.c_int32, c.c_void_p, c.c_void_p, c.c_int64, c.c_int64, c.c_int64, c.c_void_p),
    ),
    "ggml_row_size": (c.c_size_t, (c.c_int32, c.c_int64)),
}

_DEFAULTS: dict[type[c.Structure], dict[str, int]] = {
    ModelParams: {"main_gpu": 0, "vocab_only": 0, "use_extra_bufts": 1, "no_alloc": 0},
    ContextParams: {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1}
    | {"type_k": 1, "type_v": 1, "n_samplers": 0, "kv_unified": 0, "offload_kqv": 1},
}
"""A field of each part of the structs, as llama.cpp fills it in: they lie where they should."""

_LOG_CALLBACK = c.CFUNCTYPE(None, c.c_int32, c.c_char_p, c.c_void_p)
_WARNING = 3  # enum ggml_log_level; errors are 4
_complaints: deque[str] = deque(maxlen=_LOG_LINES)


def _keep_complaint(level: int, text: bytes, _: int | None) -> None:
    if level >= _WARNING:
        _complaints.append(text.decode(errors="replace").strip())


_keep = _LOG_CALLBACK(_keep_complaint)
"""llama.cpp calls it as long as this process lives: it must not be collected."""


def installed_version() -> str | None:
    """Version of the wheel, None where it is not installed."""
    try:
        return version(WHEEL)
    except PackageNotFoundError:
        return None


def require_wheel() -> None:
    """Raise ConfigError unless the one version of the wheel that the structs are of is there."""
    have = installed_version()
    if have != WHEEL_VERSION:
        raise ConfigError(
            f"GGUF is run by llama.cpp: need {WHEEL} {WHEEL_VERSION}, have {have or 'none'}; "
            "pip install 'quantile-serve[llamacpp]'"
        )


@cache
def library() -> c.CDLL:
    """llama.cpp's functions, ready to call. Raises ConfigError, EngineError."""
    require_wheel()
    lib = c.CDLL(importlib.import_module("xllamacpp.xllamacpp").__file__)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.llama_log_set(c.cast(_keep, c.c_void_p), None)
    for struct, defaults in (
        (ModelParams, lib.llama_model_default_params()),
        (ContextParams, lib.llama_context_default_params()),
    ):
        for name, need in _DEFAULTS[struct].items():
            if getattr(defaults, name) != need:
                raise EngineError(
                    f"this {WHEEL} has other structs than {LLAMA_CPP} ({struct.__name__}.{name} is "
                    f"{getattr(defaults, name)}, need {need}): install the wheel from PyPI"
                )
    lib.llama_backend_init()
    return lib


def complaint() -> str:
    """What llama.cpp last said that was a warning or an error; empty if nothing."""
    return "; ".join(line for line in _complaints if line)


def system_info() -> str:
    """The instruction sets that the library was built for and may use here."""
    info: bytes = library().llama_print_system_info()
    return info.decode().strip(" |")
