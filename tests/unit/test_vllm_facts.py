"""Which kernels a model's layers hold, read from stand-ins of vLLM's objects."""

from types import SimpleNamespace

from serve_app.engines.vllm_facts import FactsReport, attention_backends, flags, kernels


class UnquantizedLinearMethod:
    pass


class AWQMarlinLinearMethod:
    def __init__(self) -> None:
        self.kernel = MarlinLinearKernel()


class CompressedTensorsLinearMethod:
    pass


class CompressedTensorsWNa16:
    def __init__(self, kernel: object) -> None:
        self.kernel = kernel


class CompressedTensorsW8A8Int8(CompressedTensorsWNa16):
    pass


class Fp8LinearMethod:
    def __init__(self) -> None:
        self.fp8_linear = CutlassFP8ScaledMMLinearKernel()


class MarlinLinearKernel:
    pass


class CPUWNA16LinearKernel:
    pass


class CutlassFP8ScaledMMLinearKernel:
    pass


class CPUInt8ScaledMMLinearKernel:
    def __init__(self) -> None:
        self.linear_method = self._apply_weights_onednn

    def _apply_weights_onednn(self) -> None: ...


ops = SimpleNamespace(onednn_mm=None)


def linear(method: object, **held: object) -> SimpleNamespace:
    return SimpleNamespace(quant_method=method, input_size=8, **held)


def kinds(*layers: tuple[str, object]) -> dict[str, str]:
    return kernels(iter(layers))


def test_a_layer_is_named_by_its_kind_and_says_scheme_kernel_and_branch():
    ct = CompressedTensorsLinearMethod()
    wna16 = CompressedTensorsWNa16(CPUWNA16LinearKernel())
    int8 = CompressedTensorsW8A8Int8(CPUInt8ScaledMMLinearKernel())
    handler = object()
    assert kinds(
        ("l.0.o_proj", linear(ct, scheme=wna16, use_w4a8=False, isa_hint="amx")),
        ("l.0.k_proj", linear(ct, scheme=wna16, use_w4a8=True)),
        ("l.0.up_proj", linear(ct, scheme=int8)),
        ("l.0.down_proj", linear(AWQMarlinLinearMethod())),
        ("l.0.qkv_proj", linear(Fp8LinearMethod())),
        ("l.0.v_proj", linear(UnquantizedLinearMethod())),
        (
            "l.0.q_proj",
            linear(UnquantizedLinearMethod(), cpu_linear=lambda x: ops.onednn_mm(handler, x)),
        ),
    ) == {
        "o_proj": "CompressedTensorsWNa16 > CPUWNA16LinearKernel > w4a16 amx",
        "k_proj": "CompressedTensorsWNa16 > CPUWNA16LinearKernel > w4a8",
        "up_proj": "CompressedTensorsW8A8Int8 > CPUInt8ScaledMMLinearKernel > apply_weights_onednn",
        "down_proj": "AWQMarlinLinearMethod > MarlinLinearKernel",
        "qkv_proj": "Fp8LinearMethod > CutlassFP8ScaledMMLinearKernel",
        "v_proj": "UnquantizedLinearMethod",
        "q_proj": "UnquantizedLinearMethod > onednn_mm",
    }


def test_layers_of_a_kind_that_differ_are_all_told():
    plain, awq = UnquantizedLinearMethod(), AWQMarlinLinearMethod()
    layers = [(f"l.{i}.o_proj", linear(plain if i == 0 else awq)) for i in range(4)]
    assert kinds(*layers) == {
        "o_proj": "AWQMarlinLinearMethod > MarlinLinearKernel (3 layers), "
        "UnquantizedLinearMethod (1 layers)"
    }


def test_only_what_multiplies_by_weights_is_told():
    plain = UnquantizedLinearMethod()
    assert kinds(
        ("embed_tokens", SimpleNamespace(quant_method=plain)),
        ("l.0.attn", SimpleNamespace(quant_method=plain, attn_backend=None)),
        ("l.0.norm", SimpleNamespace()),
        ("l.0.gate", linear(None)),
        ("lm_head", SimpleNamespace(quant_method=plain)),
        ("l.0.experts", SimpleNamespace(quant_method=plain, moe_config=object())),
    ) == {"lm_head": "UnquantizedLinearMethod", "experts": "UnquantizedLinearMethod"}


def test_an_embedding_multiplies_only_where_it_is_the_head_as_well():
    embedding = ("embed_tokens", linear(UnquantizedLinearMethod()))
    head = ("lm_head", SimpleNamespace(quant_method=UnquantizedLinearMethod()))
    assert set(kinds(embedding, head)) == {"lm_head"}
    assert set(kinds(embedding)) == {"embed_tokens"}


def test_every_attention_backend_is_told_once():
    flash, other = (SimpleNamespace(get_name=lambda n=n: n) for n in ("FLASH_ATTN", "CPU_ATTN"))
    layers = [("a", SimpleNamespace(attn_backend=each)) for each in (flash, other, flash)]
    assert attention_backends(iter([*layers, ("b", SimpleNamespace())])) == [
        "CPU_ATTN",
        "FLASH_ATTN",
    ]


def test_flags_are_those_that_vllm_settled_on_and_nothing_is_made_up():
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            dtype="torch.bfloat16", quantization=None, max_model_len=512, enforce_eager=True
        ),
        cache_config=SimpleNamespace(cache_dtype="auto", enable_prefix_caching=False),
        scheduler_config=SimpleNamespace(max_num_seqs=8, max_num_batched_tokens=2048),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
    )
    assert flags(config) == {
        "dtype": "bfloat16",
        "max_model_len": "512",
        "max_num_seqs": "8",
        "max_num_batched_tokens": "2048",
        "enforce_eager": "True",
        "kv_cache_dtype": "auto",
        "prefix_caching": "False",
        "tensor_parallel_size": "1",
    }


def test_a_worker_reports_what_it_holds():
    storage = SimpleNamespace(data_ptr=lambda: 1, nbytes=lambda: 4096)
    layers = [("l.0.o_proj", linear(UnquantizedLinearMethod()))]
    worker = FactsReport()
    worker.model_runner = SimpleNamespace(
        get_model=lambda: SimpleNamespace(named_modules=lambda: iter(layers)),
        kv_caches=[SimpleNamespace(untyped_storage=lambda: storage)],
    )
    assert worker.quantile_facts() == {
        "kernel.o_proj": "UnquantizedLinearMethod",
        "kv_cache_bytes": "4096",
    }
