"""Small unsigned integers in 32-bit words, as quantized checkpoints pack them.

A row of n values of b bits is one stream of n*b bits, the first value in the lowest bits of the
first word, a value that does not fit going on in the next word: AutoGPTQ, AutoAWQ (which permutes
the values before) and compressed-tensors from 0.18 on. Before, compressed-tensors left the bits
over that 32 is not a multiple of (3-bit values: ten to a word).
"""

import math

import torch
from torch import Tensor

_WORD = 32


def words_for(count: int, bits: int) -> int:
    """Words that hold `count` values of `bits` bits."""
    return math.ceil(count * bits / _WORD)


def pack(values: Tensor, bits: int) -> Tensor:
    """`[rows, n]` unsigned values below 2**bits -> int32 `[rows, words_for(n, bits)]`."""
    rows, count = values.shape
    # 32 values fill `bits` words: no value of one such block reaches into the next.
    blocks = math.ceil(count / _WORD)
    padded = torch.nn.functional.pad(values, (0, blocks * _WORD - count)).view(rows, blocks, _WORD)
    words = torch.zeros(rows, blocks, bits, dtype=torch.int64)
    for i in range(_WORD):
        word, offset = divmod(i * bits, _WORD)
        shifted = padded[..., i].to(torch.int64) << offset
        words[..., word] |= shifted & 0xFFFFFFFF
        if offset + bits > _WORD:
            words[..., word + 1] |= shifted >> _WORD
    signed = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    return signed.view(rows, blocks * bits)[:, : words_for(count, bits)].contiguous()


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 `[rows, words]` -> uint8 `[rows, count]`: what `pack` packed.

    Reads both ways of compressed-tensors, told apart by how many words there are. Raises
    `ValueError` if that many words hold `count` values in neither.
    """
    rows, have = words.shape
    unsigned = words.to(torch.int64) & 0xFFFFFFFF
    mask = (1 << bits) - 1
    per_word = _WORD // bits
    if have == words_for(count, bits):
        blocks = math.ceil(have / bits)
        unsigned = torch.nn.functional.pad(unsigned, (0, blocks * bits - have))
        unsigned = unsigned.view(rows, blocks, bits)
        values = torch.empty(rows, blocks, _WORD, dtype=torch.uint8)
        for i in range(_WORD):
            word, offset = divmod(i * bits, _WORD)
            value = unsigned[..., word] >> offset
            if offset + bits > _WORD:
                value |= unsigned[..., word + 1] << (_WORD - offset)
            values[..., i] = value & mask
    elif have == math.ceil(count / per_word):
        values = torch.empty(rows, have, per_word, dtype=torch.uint8)
        for i in range(per_word):
            values[..., i] = (unsigned >> (i * bits)) & mask
    else:
        raise ValueError(f"{have} words do not hold {count} values of {bits} bits")
    return values.view(rows, -1)[:, :count].contiguous()
