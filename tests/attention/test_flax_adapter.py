"""Our functions inside Flax's own attention modules, NNX and Linen: equal to the plain call, and honest about the rest."""

import functools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import attention
from attention import (
    axial_attention,
    dot_product_attention,
    flax_attention_fn,
    linear_attention,
    linformer_attention,
    local_attention,
    longformer_attention,
    lsh_attention,
    performer_projection,
    retention,
    shifted_window_attention,
)
from attention.capabilities import CAPABILITIES
from attention.masks import Window

X = np.random.default_rng(0).standard_normal((2, 13, 12)).astype(np.float32)
IMAGES = np.random.default_rng(2).standard_normal((2, 3, 5, 12)).astype(np.float32)
REAL_PIXELS = np.random.default_rng(3).random((2, 3, 5)) < 0.7
REAL = np.arange(13) < np.array([[13], [7]])
RANDOM = np.random.default_rng(1)
PROJECTIONS = RANDOM.standard_normal((2, 13, 5)).astype(np.float32)
GATES = RANDOM.uniform(0.1, 0.9, (2, 13, 3)).astype(np.float32)
SEED = jax.random.key(1)

# What every attention function wants beside query, key and value, for 3 heads of width 4.
SETTINGS = {
    "dot_product_attention": {"is_causal": True},
    "local_attention": {"window": 4},
    "longformer_attention": {"window": 2, "causal": True, "global_positions": np.array([3])},
    "bigbird_attention": {"block_size": 2, "num_random_blocks": 1, "rng": SEED},
    "sparse_transformer_attention": {"stride": 4},
    "axial_attention": {"axis": 2, "query_table": RANDOM.standard_normal((9, 4)).astype(np.float32)},
    "shifted_window_attention": {"window": 2, "shift": 1},
    "lsh_attention": {"query_as_key": True, "num_hashes": 2, "bucket_size": 4, "rng": SEED},
    "linformer_attention": {"key_projection": PROJECTIONS[0], "value_projection": PROJECTIONS[1]},
    "performer_attention": {"projection": performer_projection(jax.random.key(0), 7, 4)},
    "linear_attention": {"causal": True, "chunk_size": 4},
    "efficient_attention": {},
    "retention": {"chunk_size": 4},
    "gated_linear_attention": {"log_decay": -GATES},
    "delta_rule_attention": {"beta": GATES},
}
CASES = {name: (getattr(attention, name), settings) for name, settings in SETTINGS.items()}
GRIDS = axial_attention, shifted_window_attention
CASES["mask"] = dot_product_attention, {"mask": Window(2, 1)}
CASES["partial"] = functools.partial(local_attention, window=2, causal=False), {"causal": True}


def nnx_module(attend, **settings):
    return nnx.MultiHeadAttention(3, 12, decode=False, attention_fn=attend, rngs=nnx.Rngs(0), **settings)


def test_every_function_has_a_case():
    assert SETTINGS.keys() == CAPABILITIES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_inside_nnx(case):
    """The module's projections, the plain call, and the module's output projection; padding as [..., 1, 1, S]."""
    fn, settings = CASES[case]
    x, real = (IMAGES, REAL_PIXELS) if fn in GRIDS else (X, REAL)
    module = nnx_module(flax_attention_fn(fn, **settings))
    given = {k: v for k, v in settings.items() if k != "query_as_key"} | {"key_mask": jnp.asarray(real)}
    query, key, value = (project(x) for project in (module.query, module.key, module.value))
    arrays = (query, value) if fn is lsh_attention else (query, key, value)
    want = module.out(fn(*arrays, **given))
    got = module(x, mask=real[..., None, None, :])
    np.testing.assert_allclose(got[real], want[real], atol=1e-6)
    assert not np.allclose(got, module(x), atol=1e-3)  # the mask did something


@pytest.mark.parametrize("case", ["dot_product_attention", "linformer_attention", "lsh_attention", "retention", "mask"])
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
        nnx_module(flax_attention_fn(linformer_attention, **SETTINGS["linformer_attention"]))(X, is_causal=True)


class Attend:
    """A callable without a name of its own."""

    def __call__(self, query, key, value, *, causal=False):
        return dot_product_attention(query, key, value, is_causal=causal)


@pytest.mark.parametrize(
    "fn, settings",
    [
        (dot_product_attention, {}),
        (dot_product_attention, {"is_causal": True}),
        (functools.partial(dot_product_attention, is_causal=True), {}),
        (functools.partial(dot_product_attention, is_causal=False), {"is_causal": True}),
        (Attend(), {}),
        (retention, {"decay": np.full(3, 0.9, np.float32)}),  # causal without a say: with a state, and no such setting
    ],
)
def test_is_causal_of_the_module(fn, settings):
    got = nnx_module(flax_attention_fn(fn, **settings))(X, is_causal=True)
    late = X.copy()
    late[:, 9:] += 1
    changed = nnx_module(flax_attention_fn(fn, **settings))(late, is_causal=True)
    np.testing.assert_array_equal(got[:, :9], changed[:, :9])
    assert not np.allclose(got[:, 9:], changed[:, 9:], atol=1e-3)


@pytest.mark.parametrize(
    "fn, settings, name",
    [
        (dot_product_attention, {"is_causal": False}, "is_causal"),
        (longformer_attention, {"window": 2, "causal": False}, "causal"),
        (functools.partial(local_attention, window=2, causal=False), {}, "causal"),
        (Attend(), {"causal": False}, "causal"),
    ],
)
def test_two_answers_to_whether_it_is_causal(fn, settings, name):
    with pytest.raises(ValueError, match=f"is_causal: the module says True, .* {name}=False"):
        nnx_module(flax_attention_fn(fn, **settings))(X, is_causal=True)


def test_callables_without_a_name_and_partials_in_messages():
    with pytest.raises(TypeError, match="window: Attend has no such setting; it has query, key, value, causal"):
        flax_attention_fn(Attend(), window=2)
    with pytest.raises(NotImplementedError, match="mask: Attend takes padding alone"):
        nnx_module(flax_attention_fn(Attend()))(X, mask=REAL[:, None, None, :])
    with pytest.raises(TypeError, match="windows: local_attention has no such setting"):
        flax_attention_fn(functools.partial(local_attention, windows=2))
    with pytest.raises(TypeError, match="fn: wanted a partial of keywords alone"):
        flax_attention_fn(functools.partial(local_attention, X))
