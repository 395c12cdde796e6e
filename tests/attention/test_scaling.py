"""Cost as each docstring promises: scores visited and the compiled program's temporary memory, at growing length.

Time. XLA counts the body of a loop once, so the FLOPs of the blockwise engine cannot be read from the compiled program
alone. The scores visited are counted instead: pairs of the schedule that the engine was given, times the block's area,
and all T * S scores of a dense call. `test_flops_of_one_visit` ties the count to the compiled FLOPs of a visit, and
test_blockwise.py shows that blocks outside the schedule are not touched.

Memory. The program's temporary bytes are a constant, such as the blockwise engine's tile of scores, plus what grows.
The fitted law is a + b T^p, so that the constant does not hide the growth.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import (
    bigbird_attention,
    blockwise,
    dot_product,
    dot_product_attention,
    longformer_attention,
    sparse_transformer_attention,
)
from attention.masks import Causal, Window

H = 4
LENGTHS = np.array([1024, 2304, 4096, 9216])  # squares of 32, 48, 64, 96: strides that divide them
KEY = jax.random.key(0)
REFERENCE = functools.partial(dot_product_attention, implementation="reference")
BLOCKWISE = functools.partial(dot_product_attention, implementation="blockwise", block_sizes=(64, 64))


def longformer(query, key, value):
    slots = np.arange(0, 500, 100)
    return longformer_attention(query, key, value, window=64, global_positions=slots, implementation="blockwise")


def sparse(pattern, query, key, value, **given):
    summary = 1 if pattern == "fixed" else None
    stride = int(query.shape[-3] ** 0.5)
    return sparse_transformer_attention(query, key, value, pattern=pattern, stride=stride, summary=summary, **given)


# function, exponent of the time, exponent of the memory
PROMISES = {
    "dense": (REFERENCE, 2, 2),
    "full": (BLOCKWISE, 2, 1),
    "causal": (functools.partial(BLOCKWISE, is_causal=True), 2, 1),
    "window": (functools.partial(BLOCKWISE, mask=Causal() & Window(64, 0)), 1, 1),
    "longformer": (longformer, 1, 1),
    "bigbird": (functools.partial(bigbird_attention, block_size=64, rng=KEY), 1, 1),
    "sparse_transformer_strided": (functools.partial(sparse, "strided"), 1.5, 1.5),
    "sparse_transformer_fixed": (functools.partial(sparse, "fixed"), 1.5, 1.5),
    "sparse_transformer_strided_split": (functools.partial(sparse, "strided", heads="split"), 1.5, 1.5),
    "sparse_transformer_fixed_per_head": (
        functools.partial(sparse, "fixed", summary_per_head=True, implementation="blockwise"), 1.5, 1,
    ),
}  # fmt: skip
TWO_HEADS = ("sparse_transformer_strided_split", "sparse_transformer_fixed_per_head")


def compiled(fn, T, differentiate, heads=1):
    def loss(query, key, value):
        return fn(query, key, value).sum()

    program = jax.grad(loss, (0, 1, 2)) if differentiate else fn
    return jax.jit(program).lower(*[jax.ShapeDtypeStruct((T, heads, H), jnp.float32)] * 3).compile()


def exponent(lengths, amounts, *, constant=True):
    """The p of the least-squares fit of a + b T^p (b T^p without `constant`), each amount weighing in proportion."""
    if not constant:
        return np.polyfit(np.log(lengths), np.log(amounts), 1)[0]
    amounts, ones = np.array(amounts, float), np.ones(len(lengths))

    def misfit(p):
        terms = np.stack([ones, (lengths / lengths[-1]) ** p], axis=-1) / amounts[:, None]
        return ((terms @ np.linalg.lstsq(terms, ones, rcond=None)[0] - 1) ** 2).sum()

    return min(np.linspace(0.5, 3, 251), key=misfit)


def scores_visited(fn, T, monkeypatch, heads=1):
    """The scores that one call computes, counted while it is traced."""
    count = []

    def reference(query, key, *args, **settings):
        count.append(np.prod(query.shape[:-1]) * key.shape[-3])
        return reference_attention(query, key, *args, **settings)

    def make_attend(program):
        attend = make(program)

        def counted(query, *args):
            pairs, plans = len(program.by_query.other), len(program.by_query.starts)
            planes = np.prod(query.shape[:3])  # batch entries and heads
            assert len(program.by_key.other) == pairs  # the backward pass visits the same
            count.append(pairs * program.block_q * program.block_k * planes // plans)
            return attend(query, *args)

        return counted

    reference_attention, make = dot_product.reference_attention, blockwise._make_attend
    with monkeypatch.context() as patch:
        patch.setattr(dot_product, "reference_attention", reference)
        patch.setattr(blockwise, "_make_attend", make_attend)
        jax.eval_shape(fn, *[jax.ShapeDtypeStruct((T, heads, H), jnp.float32)] * 3)
    return sum(count)


@pytest.mark.parametrize("name", PROMISES)
def test_time(name, monkeypatch):
    fn, promised, _ = PROMISES[name]
    visited = [scores_visited(fn, int(T), monkeypatch, 1 + (name in TWO_HEADS)) for T in LENGTHS]
    assert abs(exponent(LENGTHS, visited) - promised) < 0.15
    live = {"dense": 1, "full": 1, "causal": 0.5, "window": 65 / LENGTHS[-1]}.get(name)
    if live:  # no more than the live scores, but for the blocks they cut
        assert visited[-1] <= 2.1 * live * LENGTHS[-1] ** 2


@pytest.mark.slow
@pytest.mark.parametrize("differentiate", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize("name", PROMISES)
def test_memory(name, differentiate):
    fn, _, promised = PROMISES[name]
    heads = 1 + (name in TWO_HEADS)
    amounts = [compiled(fn, int(T), differentiate, heads).memory_analysis().temp_size_in_bytes for T in LENGTHS]
    # The dense form has no tile; XLA keeps four or five arrays of all scores, as it sees fit.
    assert abs(exponent(LENGTHS, amounts, constant=name != "dense") - promised) < 0.15
    if promised == 1:  # a few arrays of the inputs' size, beside the tile (measured: 1 to 15)
        assert amounts[-1] - amounts[-2] < 20 * 4 * H * heads * (LENGTHS[-1] - LENGTHS[-2])


def test_flops_of_one_visit():
    """What the compiled loop bodies cost is the two products of a visit, five with the gradient, and little else."""
    for differentiate, products in ((False, 2), (True, 2 + 5)):
        reported = np.array([compiled(BLOCKWISE, T, differentiate).cost_analysis()["flops"] for T in (1024, 2048)])
        outside = (reported[1] - reported[0]) / 1024
        body = reported[0] - outside * 1024
        product = 2 * H * 64 * 64
        elementwise = 2 * 64 * 64 * products  # exp, max, sums, shifts: they weigh at H = 4, not at 64
        assert products * product <= body <= products * product + elementwise


def test_flops_of_the_dense_form():
    for differentiate in (False, True):
        flops = [compiled(REFERENCE, T, differentiate).cost_analysis()["flops"] for T in (512, 1024)]
        assert abs(np.log2(flops[1] / flops[0]) - 2) < 0.15
