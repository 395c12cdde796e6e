"""Our functions inside Flax's own attention modules, NNX and Linen: equal to the plain call, and honest about the rest."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import dot_product_attention, flax_attention_fn, linear_attention, longformer_attention
from attention.linformer import linformer_attention
from attention.masks import Window
from attention.performer import performer_attention, performer_projection
from attention.reformer import lsh_attention

X = np.random.default_rng(0).standard_normal((2, 13, 12)).astype(np.float32)
REAL = np.arange(13) < np.array([[13], [7]])
PROJECTIONS = np.random.default_rng(1).standard_normal((2, 13, 5)).astype(np.float32)

CASES = {
    "dot_product": (dot_product_attention, {"is_causal": True}),
    "mask": (dot_product_attention, {"mask": Window(2, 1)}),
    "longformer": (longformer_attention, {"window": 2, "causal": True}),
    "linear": (linear_attention, {"causal": True, "chunk_size": 4}),
    "performer": (performer_attention, {"projection": performer_projection(jax.random.key(0), 7, 4)}),
    "linformer": (linformer_attention, {"key_projection": PROJECTIONS[0], "value_projection": PROJECTIONS[1]}),
    "lsh": (lsh_attention, {"query_as_key": True, "num_hashes": 2, "bucket_size": 4, "rng": jax.random.key(1)}),
}


def nnx_module(attend, **settings):
    return nnx.MultiHeadAttention(3, 12, decode=False, attention_fn=attend, rngs=nnx.Rngs(0), **settings)


@pytest.mark.parametrize("case", CASES)
def test_inside_nnx(case):
    """The module's projections, the plain call, and the module's output projection."""
    fn, settings = CASES[case]
    module = nnx_module(flax_attention_fn(fn, **settings))
    given = {k: v for k, v in settings.items() if k != "query_as_key"} | {"key_mask": jnp.asarray(REAL)}
    query, key, value = (project(X) for project in (module.query, module.key, module.value))
    arrays = (query, value) if case == "lsh" else (query, key, value)
    want = module.out(fn(*arrays, **given))
    got = module(X, mask=REAL[:, None, None, :])
    np.testing.assert_allclose(got[REAL], want[REAL], atol=1e-6)
    assert not np.allclose(got, module(X), atol=1e-3)  # the mask did something


@pytest.mark.parametrize("case", CASES)
def test_inside_linen(case):
    fn, settings = CASES[case]
    attend = flax_attention_fn(fn, **settings)
    module = flax.linen.MultiHeadDotProductAttention(3, attention_fn=attend)
    variables = module.init(jax.random.key(0), X, X)
    same = nnx_module(attend)
    for name in ("query", "key", "value", "out"):
        getattr(same, name).kernel[...] = variables["params"][name]["kernel"]
    mask = REAL[:, None, None, :]
    got, want = module.apply(variables, X, X, mask=mask), same(X, mask=mask)
    np.testing.assert_allclose(got[REAL], want[REAL], atol=1e-6)


def test_equals_flax_with_its_own_attention():
    """Any mask, as an array of floats too, and is_causal."""
    ours, theirs = nnx_module(flax_attention_fn(dot_product_attention)), nnx_module(nnx.dot_product_attention)
    for mask in (nnx.make_causal_mask(X[..., 0]), nnx.make_attention_mask(X[..., 0] < 9, REAL)):
        np.testing.assert_allclose(ours(X, mask=mask), theirs(X, mask=mask), atol=1e-6)
    np.testing.assert_allclose(ours(X, is_causal=True), theirs(X, is_causal=True), atol=1e-6)


def test_trains_and_decodes():
    module = nnx_module(flax_attention_fn(longformer_attention, window=2, causal=True))
    gradient = nnx.grad(lambda module: (module(X) ** 2).mean())(module)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient["query"]["kernel"]))
    module = nnx_module(flax_attention_fn(dot_product_attention))
    whole = module(X, is_causal=True)
    module.init_cache(X.shape)
    steps = [module(X[:, t : t + 1], decode=True) for t in range(13)]
    np.testing.assert_allclose(jnp.concatenate(steps, 1), whole, atol=1e-6)


def test_dropout():
    attend = flax_attention_fn(dot_product_attention)
    draw = nnx_module(attend, dropout_rate=0.5, broadcast_dropout=False)
    rngs = nnx.Rngs(dropout=1)
    assert not np.allclose(draw(X, deterministic=False, rngs=rngs), draw(X, deterministic=True))
    with pytest.raises(NotImplementedError, match="broadcast_dropout: .* write broadcast_dropout=False"):
        nnx_module(attend, dropout_rate=0.5)(X, deterministic=False, rngs=rngs)
    with pytest.raises(NotImplementedError, match="dropout_rate: linear_attention cannot"):
        attend = flax_attention_fn(linear_attention)
        nnx_module(attend, dropout_rate=0.5, broadcast_dropout=False)(X, deterministic=False, rngs=rngs)


def test_dtype():
    module = nnx_module(flax_attention_fn(dot_product_attention), dtype=jnp.bfloat16)
    assert module(X).dtype == jnp.bfloat16


def test_refusals():
    with pytest.raises(TypeError, match="windows: longformer_attention has no such setting"):
        flax_attention_fn(longformer_attention, windows=2)
    with pytest.raises(TypeError, match="return_state: a Flax module wants the output alone"):
        flax_attention_fn(linear_attention, return_state=True)
    with pytest.raises(ValueError, match="query_as_key: lsh_attention shares"):
        flax_attention_fn(lsh_attention, num_hashes=1, bucket_size=4)
    with pytest.raises(ValueError, match="query_as_key: linear_attention has keys"):
        flax_attention_fn(linear_attention, query_as_key=True)
    linear = nnx_module(flax_attention_fn(linear_attention))
    with pytest.raises(NotImplementedError, match=r"mask: linear_attention takes padding alone.*\[2, 1, 13, 13\]"):
        linear(X, mask=nnx.make_causal_mask(X[..., 0]))
    with pytest.raises(NotImplementedError, match="sow_weights"):
        linear(X, sow_weights=True)
    with pytest.raises(NotImplementedError, match="precision"):
        nnx_module(flax_attention_fn(linear_attention), precision=jax.lax.Precision.HIGHEST)(X)
    with pytest.raises(NotImplementedError, match="is_causal: linformer_attention has no causal form"):
        nnx_module(flax_attention_fn(*CASES["linformer"][:1], **CASES["linformer"][1]))(X, is_causal=True)
