"""Counts are Python or NumPy ints and nothing else, in every function that takes one."""

import jax
import numpy as np
import pytest

from attention import (
    KeyValueCache,
    bigbird_attention,
    bigbird_random_blocks,
    delta_rule_attention,
    efficient_attention,
    gated_linear_attention,
    linear_attention,
    local_attention,
    longformer_attention,
    lsh_attention,
    lsh_rotations,
    performer_attention,
    performer_projection,
    retention,
    sparse_transformer_attention,
)
from attention.checks import check_int

RANDOM = np.random.default_rng(0)
QKV = tuple(RANDOM.standard_normal((3, 9, 2, 4)).astype(np.float32))
PROJECTION = RANDOM.standard_normal((5, 4)).astype(np.float32)
GATES = RANDOM.uniform(size=(9, 2, 4)).astype(np.float32)
SEED = jax.random.key(0)


def lsh(**sizes):
    return lsh_attention(*QKV[1:], rng=SEED, **{"num_hashes": 2, "bucket_size": 3} | sizes)


def bigbird(**sizes):
    return bigbird_attention(*QKV, rng=SEED, **{"block_size": 1, "num_random_blocks": 1} | sizes)


def cache(**sizes):
    return KeyValueCache.create((), **{"num_kv_heads": 1, "head_dim": 4, "window": 3} | sizes)


CALLS = {
    "window": [
        lambda n: local_attention(*QKV, window=n),
        lambda n: longformer_attention(*QKV, window=n),
        lambda n: cache(window=n),
    ],
    "look_backward": [lambda n: local_attention(*QKV, window=2, look_backward=n)],
    "look_forward": [lambda n: local_attention(*QKV, window=2, look_forward=n)],
    "dilation": [
        lambda n: longformer_attention(*QKV, window=2, dilation=n),
        lambda n: longformer_attention(*QKV, window=2, dilation=(n, 3)),
    ],
    "stride": [lambda n: sparse_transformer_attention(*QKV, stride=n)],
    "summary": [lambda n: sparse_transformer_attention(*QKV, stride=4, pattern="fixed", summary=n)],
    "block_size": [lambda n: bigbird(block_size=n), lambda n: bigbird_random_blocks(SEED, 2, 9, n, 1)],
    "num_random_blocks": [lambda n: bigbird(num_random_blocks=n)],
    "num_global_blocks": [lambda n: bigbird(num_global_blocks=n)],
    "num_global_tokens": [lambda n: bigbird(num_global_tokens=n)],
    "num_hashes": [lambda n: lsh(num_hashes=n), lambda n: lsh_rotations(SEED, 2, 4, n, 4)],
    "bucket_size": [lambda n: lsh(bucket_size=n)],
    "chunks_before": [lambda n: lsh(chunks_before=n)],
    "chunks_after": [lambda n: lsh(chunks_after=n)],
    "num_heads": [lambda n: lsh_rotations(SEED, n, 4, 2, 4)],
    "num_features": [lambda n: performer_projection(SEED, n, 4)],
    "head_dim": [
        lambda n: performer_projection(SEED, 4, n),
        lambda n: lsh_rotations(SEED, 2, n, 2, 4),
        lambda n: cache(head_dim=n),
    ],
    "num_kv_heads": [lambda n: cache(num_kv_heads=n)],
    "value_dim": [lambda n: cache(value_dim=n)],
    "pinned": [lambda n: cache(pinned=n)],
    "capacity": [lambda n: cache(window=None, capacity=n)],
    "chunk_size": [
        lambda n: linear_attention(*QKV, causal=True, chunk_size=n),
        lambda n: efficient_attention(*QKV, chunk_size=n),
        lambda n: performer_attention(*QKV, PROJECTION, causal=True, chunk_size=n),
        lambda n: retention(*QKV, chunk_size=n),
        lambda n: gated_linear_attention(*QKV, -GATES, chunk_size=n),
        lambda n: delta_rule_attention(*QKV, GATES[..., 0], chunk_size=n),
    ],
}
CASES = [(name, call) for name, calls in CALLS.items() for call in calls]


@pytest.mark.slow
@pytest.mark.parametrize("name, call", CASES)
def test_counts(name, call):
    for got, want in zip(jax.tree.leaves(call(np.int64(2))), jax.tree.leaves(call(2)), strict=True):
        np.testing.assert_array_equal(got, want)
    for wrong in (True, -1, 2.0, "2"):
        with pytest.raises(ValueError, match=rf"^{name}: wanted an int >= [01], got {wrong!r}"):
            call(wrong)


@pytest.mark.parametrize("value, least", [(0, 0), (3, 1), (np.int8(1), 1), (np.uint32(7), 7)])
def test_check_int_allows(value, least):
    check_int("n", value, least)


@pytest.mark.parametrize("value", [0, -1, False, True, np.bool_(True), 1.0, np.float32(1), None, "1", np.array(1)])
def test_check_int_refuses(value):
    with pytest.raises(ValueError, match="^n: wanted an int >= 1, got "):
        check_int("n", value, 1)
