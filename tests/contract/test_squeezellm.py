"""SqueezeLLM's arithmetic and files: k-means, sensitivity, packing, the sparse part, twins.

In tests/contract because it needs torch, and transformers for a model of two layers.
"""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.domain.errors import BuildError, CheckpointError
from serve_app.engines.vllm_squeezellm_weights import (
    Outliers,
    look_up,
    pack,
    require_format,
    stack,
    unpack,
)
from serve_app.quantize.kmeans import assign, weighted_kmeans
from serve_app.quantize.layouts import dequantize
from serve_app.quantize.make_squeezellm import (
    Shares,
    outliers,
    squeeze,
    squeeze_matrix,
    windows,
)
from serve_app.quantize.sensitivity import diagonal_fisher
from serve_app.quantize.twin import weights_digest, write_twin

BOTH = Shares(largest=0.02, sensitive=0.01)
ROWS = [[1, 5, 9, 3, 7, 2], [4, 4, 8, 1, 0, 6]]


def numbers(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cost(points, weights, centres, nearest) -> np.ndarray:
    dense = centres.double().gather(1, nearest.long())
    return (weights * (points - dense) ** 2).sum(1).numpy()


def best_cost(points: np.ndarray, weights: np.ndarray, k: int) -> float:
    """The least cost of any clustering: dynamic programming over the sorted points, O(k n^2)."""
    order = np.argsort(points)
    x, w = points[order], weights[order]
    mass, first, second = (np.r_[0, np.cumsum(w * x**power)] for power in (0, 1, 2))
    between = [np.subtract.outer(sums, sums).T for sums in (mass, first, second)]
    with np.errstate(all="ignore"):
        spread = between[2] - np.where(between[0] > 0, between[1] ** 2 / between[0], 0)
    spread[np.tril_indices_from(spread, -1)] = np.inf
    least = spread[0]
    for _ in range(k - 1):
        least = np.minimum(least, (least[:, None] + spread).min(0))
    return float(least[-1])


@pytest.mark.parametrize("seed", range(30))
def test_kmeans_of_few_points_is_the_best_of_all_clusterings(seed):
    """Every way to cut six sorted points into three runs, tried one by one."""
    points = torch.randn(1, 6, generator=numbers(seed)).double()
    weights = torch.rand(1, 6, generator=numbers(seed + 99)).double()
    x, order = points[0].sort()
    w = weights[0][order]
    tried = []
    for cuts in itertools.combinations(range(1, 6), 2):
        runs = [slice(a, b) for a, b in itertools.pairwise((0, *cuts, 6))]
        means = [(w[run] * x[run]).sum() / w[run].sum() for run in runs]
        tried.append(
            sum(float((w[r] * (x[r] - m) ** 2).sum()) for r, m in zip(runs, means, strict=True))
        )
    assert best_cost(points[0].numpy(), weights[0].numpy(), 3) == pytest.approx(min(tried))
    centres, nearest = weighted_kmeans(points, weights, 3)
    assert cost(points, weights, centres, nearest)[0] == pytest.approx(min(tried), rel=1e-4)


@pytest.mark.parametrize("k", [8, 16])
def test_kmeans_of_weights_is_near_the_optimum(k):
    """Rows as a trained layer has them, with a heavy tail and gradients over four decades."""
    points = torch.randn(24, 256, generator=numbers(1)).double() ** 3 * 0.02
    weights = torch.randn(24, 256, generator=numbers(2)).double().mul(2).exp()
    have = cost(points, weights, *weighted_kmeans(points, weights, k))
    pairs = zip(points.numpy(), weights.numpy(), strict=True)
    ratio = have / np.array([best_cost(x, w, k) for x, w in pairs])
    print(f"k {k}: mean {ratio.mean():.4f}, worst {ratio.max():.4f} of the optimum")
    assert ratio.min() > 1 - 1e-6
    assert ratio.mean() < 1.01
    assert ratio.max() < 1.05


def test_kmeans_finds_as_many_values_as_there_are():
    points = torch.tensor([[3.0, -1.0, 3.0, 0.5, -1.0, 0.5], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]])
    centres, nearest = weighted_kmeans(points, torch.ones(2, 6), 4)
    assert torch.equal(centres.gather(1, nearest.long()), points)
    assert (centres.diff(dim=1) >= 0).all()


def test_what_has_no_weight_does_not_count():
    """A far point that is kept elsewhere must not draw a centre to it."""
    points = torch.tensor([[0.0, 1.0, 2.0, 3.0, 1000.0]])
    weights = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]])
    centres, nearest = weighted_kmeans(points, weights, 4)
    assert torch.equal(centres.gather(1, nearest.long())[0, :4], points[0, :4])
    # Where nothing has weight, everything counts alike.
    assert torch.equal(
        weighted_kmeans(points, torch.zeros(1, 5), 2)[0],
        weighted_kmeans(points, torch.ones(1, 5), 2)[0],
    )


def test_kmeans_is_the_same_for_any_chunk_and_scale(monkeypatch):
    points = torch.randn(9, 64, generator=numbers(3))
    weights = torch.rand(9, 64, generator=numbers(4))
    told = []
    whole = weighted_kmeans(points, weights, 8, lambda done, total: told.append((done, total)))
    assert told == [(9, 9)]
    monkeypatch.setattr("serve_app.quantize.kmeans.CHUNK_POINTS", 128)
    for a, b in zip(whole, weighted_kmeans(points, weights * 2.0**-60, 8), strict=True):
        assert torch.equal(a, b)


def test_each_point_goes_to_its_nearest_centre():
    points, centres = torch.randn(5, 40, generator=numbers(5)), torch.randn(5, 8).sort(1).values
    nearest = (points[:, :, None] - centres[:, None, :]).abs().argmin(-1)
    assert torch.equal(assign(points, centres).long(), nearest)


@pytest.mark.parametrize(
    ("points", "weights", "k"),
    [
        (torch.ones(2, 3), torch.ones(3, 2), 2),
        (torch.ones(2, 3), torch.ones(2, 3), 257),
        (torch.tensor([[1.0, torch.nan]]), torch.ones(1, 2), 2),
        (torch.ones(1, 2), torch.tensor([[1.0, -1.0]]), 2),
    ],
)
def test_what_cannot_be_clustered_is_refused(points, weights, k):
    with pytest.raises(ValueError, match=r"need|must"):
        weighted_kmeans(points, weights, k)


@pytest.mark.parametrize("bits", [3, 4])
def test_packed_codes_take_their_bits_and_come_back(bits):
    codes = torch.randint(0, 2**bits, (7, 48), generator=numbers(bits), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (7, 48 * bits // 8)
    assert torch.equal(unpack(packed, bits), codes)


def test_the_order_of_the_bits_is_fixed():
    """The layout on disk: a change of it must not pass unseen."""
    codes = torch.arange(8, dtype=torch.uint8)[None]
    assert pack(codes, 4)[0].tolist() == [0x10, 0x32, 0x54, 0x76]
    assert pack(codes, 3)[0].tolist() == [0b10001000, 0b11000110, 0b11111010]


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="multiple of 8 columns"):
        pack(torch.zeros(1, 12, dtype=torch.uint8), 4)
    with pytest.raises(ValueError, match="codes below 8"):
        pack(torch.full((1, 8), 9, dtype=torch.uint8), 3)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_looking_up_is_exact(bits, dtype):
    codes = torch.randint(0, 2**bits, (5, 32), generator=numbers(7), dtype=torch.uint8)
    table = torch.randn(5, 2**bits, generator=numbers(8)).to(dtype)
    table[0, 0], table[0, 1] = -0.0, torch.finfo(dtype).max
    dense = look_up(pack(codes, bits), table, bits)
    assert dense.dtype is dtype
    assert torch.equal(dense, table.gather(1, codes.long()))


def sparse(dense: torch.Tensor) -> Outliers:
    at = dense != 0
    return Outliers(at.sum(1), at.nonzero()[:, 1], dense[at], dense.shape[1])


def test_outliers_are_stacked_and_divided_like_their_matrices():
    made = torch.randn(12, 16, generator=numbers(9)) * (
        torch.rand(12, 16, generator=numbers(10)) < 0.2
    )
    made[3] = 0  # a row without any
    tall = stack([sparse(made[:7]), sparse(made[7:])])
    assert torch.equal(tall.put_into(torch.zeros(12, 16)), made)
    rows = torch.tensor([11, 3, 0, 7, 7])
    assert torch.equal(tall.take_rows(rows).put_into(torch.zeros(5, 16)), made[rows])
    right = tall.take_columns(8, 8)
    assert torch.equal(right.put_into(torch.zeros(12, 8)), made[:, 8:])


def test_outliers_that_do_not_belong_together_are_refused():
    one = torch.ones(1)
    with pytest.raises(CheckpointError, match="says 2 outliers, and there are 1 columns"):
        Outliers(torch.tensor([1, 1]), torch.tensor([0]), one, 4)
    with pytest.raises(CheckpointError, match="column 4 of 4"):
        Outliers(torch.tensor([1, 0]), torch.tensor([4]), one, 4)


def test_the_most_sensitive_and_the_largest_others_are_kept_exact():
    weight = torch.randn(10, 100, generator=numbers(11))
    fisher = torch.rand(10, 100, generator=numbers(12))
    exact = outliers(weight, fisher, BOTH)
    assert exact.sum() == 30  # 2 % and 1 % of a thousand, none twice
    sensitive = fisher >= fisher.flatten().topk(10).values[-1]
    assert exact[sensitive].all()
    largest = weight.abs().masked_fill(sensitive, 0).flatten().topk(20).indices
    assert exact.flatten()[largest].all()
    assert outliers(weight, None, BOTH).sum() == 20  # nothing is known to be sensitive


@pytest.mark.parametrize("bits", [3, 4])
def test_a_layer_comes_back_as_table_entries_and_exact_outliers(bits):
    weight = (torch.randn(6, 64, generator=numbers(13)) * 0.05).bfloat16().float()
    fisher = torch.rand(6, 64, generator=numbers(14))
    parts = squeeze_matrix(weight, fisher, bits, BOTH)
    dense = look_up(parts["qweight"], parts["lookup_table"], bits)
    assert all(len(set(row.tolist())) <= 2**bits for row in dense)
    counts, columns, values = (parts[f"outlier_{name}"] for name in ("counts", "columns", "values"))
    Outliers(counts, columns, values, 64).put_into(dense)
    exact = outliers(weight, fisher, BOTH)
    assert torch.equal(dense[exact].float(), weight[exact])
    assert columns.dtype is torch.uint8
    assert counts.dtype is torch.int16


def test_sensitivity_decides_where_precision_goes():
    """The weights that the loss minds lose less than under equal weights, the others more."""
    weight = torch.randn(4, 256, generator=numbers(15))
    minded = torch.zeros(4, 256, dtype=torch.bool)
    minded[:, ::8] = True
    fisher = torch.where(minded, 1.0, 1e-3)
    none = Shares(0, 0)

    def errors(sensitivity) -> torch.Tensor:
        parts = squeeze_matrix(weight, sensitivity, 3, none)
        dense = look_up(parts["qweight"], parts["lookup_table"], 3).float()
        return (dense - weight) ** 2

    by_fisher, alike = errors(fisher), errors(None)
    assert by_fisher[minded].mean() < 0.5 * alike[minded].mean()
    assert by_fisher[~minded].mean() > alike[~minded].mean()


def test_a_weight_beyond_fp16_is_refused():
    with pytest.raises(BuildError, match="65504"):
        squeeze_matrix(torch.full((1, 8), 1e5), None, 4, Shares(0, 0))


def test_layers_are_taken_in_windows_of_bounded_bytes():
    sizes = {"a": 10, "b": 10, "c": 30, "d": 5}
    assert list(windows(sizes, limit_bytes=80)) == [["a", "b"], ["c"], ["d"]]
    assert list(windows(sizes)) == [["a", "b", "c", "d"]]
    assert list(windows({})) == []


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Llama of two layers with random weights, as transformers saves it in bf16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def test_fisher_is_the_mean_squared_gradient(base):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    name = "model.layers.1.mlp.up_proj.weight"
    weight = dict(model.named_parameters())[name]
    told = []
    found = diagonal_fisher(model, {name: weight}, ROWS, lambda *at: told.append(at))
    assert told == [(1, 2), (2, 2)]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    expected = torch.zeros_like(weight)
    for row in ROWS:
        tokens = torch.tensor([row])
        scores = model(input_ids=tokens).logits[0, :-1].log_softmax(-1)
        loss = -scores.gather(1, tokens[0, 1:, None]).sum()
        expected += torch.autograd.grad(loss, weight)[0] ** 2 / len(ROWS)
    torch.testing.assert_close(found[name], expected)
    with pytest.raises(ValueError, match="at least two tokens"):
        diagonal_fisher(model, {name: weight}, [[3]])


@pytest.fixture(scope="module")
def variant(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("w3")
    squeeze(base, folder, 3, BOTH, ROWS)
    return folder


def test_a_checkpoint_comes_back_whole(base, variant):
    plain, dense = dequantize(base, "plain"), dequantize(variant, "squeezellm")
    assert dense.keys() == plain.keys()
    for name, weight in dense.items():
        if name.endswith("_proj.weight"):
            error = (weight - plain[name]).norm() / plain[name].norm()
            assert 0 < error < 0.3, name
        else:
            assert torch.equal(weight, plain[name])
    quantization = json.loads((variant / "config.json").read_text())["quantization_config"]
    assert quantization["ignore"] == ["lm_head"]


def test_windows_do_not_change_the_weights(base, variant, tmp_path, monkeypatch):
    monkeypatch.setattr("serve_app.quantize.make_squeezellm.WINDOW_BYTES", 1)
    monkeypatch.setattr("serve_app.quantize.make_squeezellm.windows.__defaults__", (1,))
    squeeze(base, tmp_path, 3, BOTH, ROWS)
    one, other = (load_file(folder / "model.safetensors") for folder in (variant, tmp_path))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def damaged(variant, tmp_path, damage=lambda tensors: None, **quantization):
    config = json.loads((variant / "config.json").read_text())
    config["quantization_config"] |= quantization
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(variant / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"checkpoint_format": None}, "checkpoint_format None; need 'quantile-1'"),
        ({"bits": 2}, r"bits 2 and outliers True; need bits of \(3, 4\)"),
        ({"bits": 4}, "which are not 4-bit weights"),
    ],
)
def test_files_of_another_format_are_refused(variant, tmp_path, quantization, message):
    with pytest.raises(CheckpointError, match=message):
        dequantize(damaged(variant, tmp_path, **quantization), "squeezellm")


def test_missing_and_damaged_tensors_are_named(variant, tmp_path):
    layer = "model.layers.0.self_attn.o_proj"
    folder = damaged(variant, tmp_path, lambda t: t.pop(f"{layer}.outlier_values"))
    with pytest.raises(CheckpointError, match=f"lacks outlier_values of {layer}"):
        dequantize(folder, "squeezellm")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        dequantize(folder, "squeezellm")


def test_only_known_containers_are_read(variant):
    with pytest.raises(CheckpointError, match=r"stored as 'exl2'.*need one of plain, "):
        dequantize(variant, "exl2")
    with pytest.raises(CheckpointError, match="checkpoint_format None"):
        require_format({"quant_method": "squeezellm", "bits": 4}, "there")


RECORD = {
    "variant": "w3",
    "method": "squeezellm",
    "scheme": {"method": "squeezellm", "bits": 3},
    "engine": {"kind": "vllm", "dtype": "float16"},
}


def test_a_twin_has_the_weights_and_says_whose(variant, tmp_path):
    (variant / "quantile.json").write_text(json.dumps(RECORD))
    (variant / "tokenizer.json").write_text("{}")
    dense = dequantize(variant, "squeezellm")
    twin = tmp_path / "twin"
    write_twin(variant, twin, dense)
    again = dequantize(twin, "plain")
    assert again.keys() == dense.keys()
    # Tables and outliers are fp16 in the variant; what stayed bf16 is rounded below fp16's range.
    assert all(torch.equal(again[n], w) for n, w in dense.items() if n.endswith("_proj.weight"))
    assert all(torch.equal(again[n], w.half().float()) for n, w in dense.items())
    config = json.loads((twin / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float16"
    assert (twin / "tokenizer.json").exists()
    record = json.loads((twin / "quantile.json").read_text())
    assert record["method"] == "unquantized"
    stored = load_file(variant / "model.safetensors").values()
    assert record["twin_of"] == {
        "variant": "w3",
        "method": "squeezellm",
        "scheme": RECORD["scheme"],
        "weight_bytes": sum(t.numel() * t.element_size() for t in stored),
        "file_bytes": (variant / "model.safetensors").stat().st_size,
        "weights_sha256": weights_digest(variant),
        "activations": "16 bits, as in every twin",
    }


def test_a_twin_that_would_lie_is_refused(variant, tmp_path):
    (variant / "quantile.json").write_text(json.dumps(RECORD))
    dense = dequantize(variant, "squeezellm")
    with pytest.raises(BuildError, match="float16 cannot hold: take bfloat16"):
        write_twin(variant, tmp_path / "a", {"big": torch.tensor([1e6])})
    with pytest.raises(BuildError, match="not finite after dequantization"):
        write_twin(variant, tmp_path / "a", {"bad": torch.tensor([torch.nan])})
    with pytest.raises(BuildError, match="one of float16, bfloat16; have 'float8'"):
        write_twin(variant, tmp_path / "a", dense, dtype="float8")
    write_twin(variant, tmp_path / "twin", dense)
    with pytest.raises(CheckpointError, match="is a twin"):
        write_twin(tmp_path / "twin", tmp_path / "b", dense)
    with pytest.raises(CheckpointError, match=r"cannot read .*quantile\.json"):
        write_twin(tmp_path, tmp_path / "c", dense)
