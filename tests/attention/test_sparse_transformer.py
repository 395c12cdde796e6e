"""Sparse Transformer equals dense attention under its own mask, merged or split over heads."""

import functools

import numpy as np
import pytest
from materialised import BLOCKWISE, N, assert_dense, assert_dropout, grids, packed, padding

from attention import alibi_slopes, sparse_transformer_attention
from attention.biases import ALiBi, SoftCap
from attention.sparse_transformer import sparse_pattern

REFERENCE = {"implementation": "reference"}

SPARSE = {
    "strided": (23, {"pattern": "strided", "stride": 5}),
    "strided_blockwise": (23, {"pattern": "strided", "stride": 5, **BLOCKWISE}),
    "strided_both_ways": (25, {"pattern": "strided", "stride": 5, "causal": False, "scale": 0.3}),
    "strided_by_one": (7, {"pattern": "strided", "stride": 1}),
    "strided_past_the_end": (7, {"pattern": "strided", "stride": 11, "causal": False}),
    "strided_one_token": (1, {"pattern": "strided", "stride": 4}),
    "strided_padded_packed_biased": (
        23, {"pattern": "strided", "stride": 4, "key_mask": padding(23), **packed(23), "bias": ALiBi(alibi_slopes(N))},
    ),
    "fixed": (23, {"pattern": "fixed", "stride": 5}),
    "fixed_blockwise": (23, {"pattern": "fixed", "stride": 5, "summary": 2, **BLOCKWISE}),
    "fixed_both_ways": (20, {"pattern": "fixed", "stride": 5, "summary": 2, "causal": False, "bias": SoftCap(2.0)}),
    "fixed_default_summary": (37, {"pattern": "fixed", "stride": 17}),
    "fixed_all_summary": (13, {"pattern": "fixed", "stride": 3, "summary": 3}),
    "fixed_one_token": (1, {"pattern": "fixed", "stride": 4, "causal": False}),
    "fixed_padded_packed_biased": (
        23,
        {"pattern": "fixed", "stride": 4, "key_mask": padding(23), **packed(23), "bias": ALiBi(alibi_slopes(N))},
    ),
    "strided_split": (23, {"pattern": "strided", "stride": 5, "heads": "split", "key_mask": padding(23), **packed(23)}),
    "strided_split_both_ways": (20, {"pattern": "strided", "stride": 5, "heads": "split", "causal": False}),
    "strided_split_biased": (23, {"pattern": "strided", "stride": 5, "heads": "split", "bias": ALiBi(alibi_slopes(N))}),
    "fixed_split": (23, {"pattern": "fixed", "stride": 5, "summary": 2, "heads": "split", "bias": ALiBi(alibi_slopes(N))}),
    "fixed_split_both_ways": (20, {"pattern": "fixed", "stride": 5, "heads": "split", "causal": False}),
    "fixed_per_head": (23, {"pattern": "fixed", "stride": 7, "summary": 2, "summary_per_head": True}),
    "fixed_per_head_both_ways": (
        23, {"pattern": "fixed", "stride": 5, "summary_per_head": True, "causal": False, "key_mask": padding(23), **packed(23)},
    ),
    "fixed_per_head_split": (
        23,
        {"pattern": "fixed", "stride": 4, "summary_per_head": True, "heads": "split", "key_mask": padding(23), **packed(23)},
    ),
    "fixed_per_head_reference": (
        23,
        {"pattern": "fixed", "stride": 4, "summary_per_head": True, "heads": "split", "bias": SoftCap(2.0), **REFERENCE},
    ),
    "strided_reference": (23, {"pattern": "strided", "stride": 5, "key_mask": padding(23), "implementation": "reference"}),
}  # fmt: skip


def definition(T, pattern, stride, summary=None, heads="merged", per_head=False):
    """`[N, T, T]`, from the paper's sets."""
    i, j = grids(T)
    if pattern == "strided":
        first, second = abs(i - j) < stride, [(i - j) % stride == 0] * N
    else:
        summary = max(1, stride // 8) if summary is None else summary
        first, runs = i // stride == j // stride, stride // summary
        starts = [stride - (n % runs + 1) * summary if per_head else stride - summary for n in range(N)]
        second = [np.broadcast_to((s <= j % stride) & (j % stride < s + summary), (T, T)) for s in starts]
    if heads == "merged":
        return np.stack([first | x for x in second])
    return np.stack([first if n < N // 2 else x for n, x in enumerate(second)])


def pattern_of(given):
    names = {
        "pattern": "pattern",
        "stride": "stride",
        "summary": "summary",
        "heads": "heads",
        "summary_per_head": "per_head",
    }
    return {ours: given[name] for name, ours in names.items() if name in given}


@pytest.mark.parametrize("case", SPARSE)
def test_equals_dense(case):
    T, given = SPARSE[case]
    causal = given.get("causal", True)
    pattern = definition(T, **pattern_of(given))
    assert_dense(sparse_transformer_attention, pattern, T, given, causal=causal)
    settings = {name: given.get(name, None) for name in ("pattern", "stride", "summary")}
    heads = {name: given[name] for name in ("heads", "summary_per_head") if name in given}
    mask = sparse_pattern(**settings, causal=causal, **heads, num_heads=N).dense(T)
    i, j = grids(T)
    np.testing.assert_array_equal(np.broadcast_to(mask, (N, T, T)), pattern & ((j <= i) | (not causal)))


@pytest.mark.parametrize(
    "given",
    [
        {"pattern": "strided", "stride": 5},
        {"pattern": "fixed", "stride": 5, "summary": 2},
        {"pattern": "strided", "stride": 5, "heads": "split"},
        {"pattern": "fixed", "stride": 5, "summary_per_head": True},
    ],
)
def test_dropout(given):
    assert_dropout(functools.partial(sparse_transformer_attention, **given))


X = np.zeros((2, 13, N, 3), np.float32)


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"stride": 0}, ValueError, r"stride: wanted an int >= 1, got 0"),
        ({"stride": 4, "pattern": "random"}, ValueError, r"pattern: wanted 'strided' or 'fix"),
        ({"stride": 4, "summary": 1}, ValueError, r"summary: only the fixed pattern has"),
        (
            {"stride": 4, "pattern": "fixed", "summary": 5},
            ValueError,
            r"summary: wanted at most stride = 4, got 5",
        ),
        (
            {"stride": 4, "bias": np.zeros((13, 13), np.float32)},
            NotImplementedError,
            r"bias: the sparse form takes Bias objects or functions of positions, got an array",
        ),
        ({"stride": 4, "summary_per_head": True}, ValueError, r"summary_per_head: only the fixed pattern has summary"),
        ({"stride": 4, "heads": "both"}, ValueError, r"heads: wanted 'merged' or 'split', got 'both'"),
        (
            {"stride": 4, "pattern": "fixed", "summary_per_head": True, "bias": SoftCap(2.0)},
            NotImplementedError,
            r"bias: with summary_per_head heads have keys of their own; use implementation='reference'",
        ),
    ],
)
def test_refusals(given, error, message):
    with pytest.raises(error, match=message):
        sparse_transformer_attention(X, X, X, **given)


def test_one_head_cannot_be_split():
    with pytest.raises(ValueError, match="heads: wanted 'merged' for a single head, got 'split'"):
        sparse_transformer_attention(*[X[:, :, :1]] * 3, stride=4, heads="split")
