"""How each variant attends inside a model: a config's settings become the arguments of one attention function.

Every function here is `(query, key, value, *arrays, settings, causal, **tail) -> output`. `arrays` are what the variant
asks for beside query, key and value (`Variant.arrays`). `tail` is what the layer wants honoured, and only that:
key_mask, query_segment_ids and key_segment_ids, bias, dropout_rate and dropout_rng, initial_state and return_state, for
the variants of images `grid`, the rows and columns that the tokens stand in, and for those of graphs `edges`. The
`mask_*` are the same patterns as objects, to draw, to compare with and to decode under.
"""

import jax
import jax.numpy as jnp
import numpy as np

from attention.axial import axial_attention
from attention.bigbird import bigbird_attention, bigbird_pattern, bigbird_random_blocks
from attention.checks import split_rng
from attention.delta_rule import delta_rule_attention
from attention.dot_product import dot_product_attention
from attention.gated_linear import gated_linear_attention, retention
from attention.graph import gatv2_attention, graph_dot_product_attention
from attention.linear import efficient_attention, elu_plus_one, linear_attention, softmax_features, taylor_features
from attention.linformer import linformer_attention
from attention.local import local_attention
from attention.longformer import longformer_attention, window_pattern
from attention.masks import Blocks, Causal, Full, Global, Window
from attention.performer import performer_attention, performer_projection
from attention.reformer import lsh_attention
from attention.sparse_transformer import sparse_pattern, sparse_transformer_attention
from attention.swin import fit_window, shifted_window_attention
from models.edges import between_real, disjoint_union

FEATURE_MAPS = {
    "elu_plus_one": elu_plus_one,
    "relu": jax.nn.relu,  # Shen et al. 2018 name it, Kasai et al. 2021 (arXiv:2103.13076) learn with it
    "softmax": softmax_features,
    "taylor": taylor_features,
}

GLOBALS = ("global_query", "global_key", "global_value")  # arguments of `longformer_attention`


def full(query, key, value, *, settings, causal, **tail):
    return dot_product_attention(query, key, value, is_causal=causal, **_one_rng(tail))


def mask_full(settings, length, num_heads=1, *, causal=True):
    return Causal() if causal else Full()


def window(query, key, value, *, settings, causal, **tail):
    mask = mask_window(settings, query.shape[-3], causal=causal)
    return dot_product_attention(query, key, value, mask=mask, **_one_rng(tail))


def mask_window(settings, length, num_heads=1, *, causal=True):
    return Window(settings["window"], 0 if causal else settings["window"])


def local(query, key, value, *, settings, causal, **tail):
    looks = {"look_backward": settings["neighbours"], "look_forward": 0 if causal else settings["neighbours"]}
    return local_attention(query, key, value, window=settings["window"], causal=causal, **looks, **_one_rng(tail))


def mask_local(settings, length, num_heads=1, *, causal=True):
    blocks = Blocks(settings["window"], -settings["neighbours"], 0 if causal else settings["neighbours"])
    return blocks & Causal() if causal else blocks


def longformer(query, key, value, *projected, settings, causal, **tail):
    window = {name: settings[name] for name in ("window", "dilation")}
    prefix, projected = _prefix(settings, query.shape[-3]), dict(zip(GLOBALS, projected, strict=False))
    tail = _one_rng(tail)
    return longformer_attention(
        query, key, value, **window, global_positions=prefix, causal=causal, **projected, **tail
    )


def globals_learned(settings, sizes):
    """The second set of projections, which the rows of global tokens read through (section 3 of the paper)."""
    if not settings["global_projections"]:
        return {}
    heads = sizes.num_heads, sizes.num_kv_heads, sizes.num_kv_heads
    return {name: ((sizes.width, n, sizes.head_dim), 0.02) for name, n in zip(GLOBALS, heads, strict=True)}


def global_projections(settings, sizes, learned, x, rotate, rng):
    """Query, key and value of the global rows, rotated as the ordinary ones; () where both share theirs."""
    if not settings["global_projections"]:
        return ()
    query, key, value = (jnp.einsum("btd,dnh->btnh", x, learned[name].astype(x.dtype)) for name in GLOBALS)
    return (query, key, value) if rotate is None else (rotate(query), rotate(key), value)


def longformer_ring(settings):
    if settings["global_projections"]:
        raise NotImplementedError(
            "global_projections: the rows of global tokens read keys that no cache keeps; write 0 to decode"
        )
    return {"window": settings["window"] * settings["dilation"], "pinned": settings["num_global"]}


def mask_longformer(settings, length, num_heads=1, *, causal=True):
    prefix, window = _prefix(settings, length), window_pattern(settings["window"], settings["dilation"], 1, causal)
    if prefix is None:
        return window
    return (window | Global(prefix)) & Causal() if causal else window | Global(prefix)


def _prefix(settings, length):
    """Positions of the first num_global tokens, None for none."""
    return np.arange(min(settings["num_global"], length)) if settings["num_global"] else None


def sparse_transformer(query, key, value, *, settings, causal, **tail):
    return sparse_transformer_attention(query, key, value, **_sparse(settings, causal), **_one_rng(tail))


def mask_sparse_transformer(settings, length, num_heads=2, *, causal=True):  # 2: a head for each factor, if "split"
    return sparse_pattern(**_sparse(settings, causal), num_heads=num_heads)


def _sparse(settings, causal):
    """The settings as arguments: a config writes 0, the function wants None where there are no summary columns."""
    given = {"summary": settings["summary"] or None, "summary_per_head": bool(settings["summary_per_head"])}
    return {**settings, **given, "causal": causal}


def bigbird(query, key, value, *, settings, causal, **tail):
    blocks = _random_blocks(settings, *query.shape[-3:-1], causal)
    return bigbird_attention(query, key, value, random_blocks=blocks, causal=causal, **_bigbird_sizes(settings), **tail)


def mask_bigbird(settings, length, num_heads=1, *, causal=True):
    blocks = _random_blocks(settings, length, num_heads, causal)
    return bigbird_pattern(blocks, num_heads, length, causal=causal, **_bigbird_sizes(settings))


def _bigbird_sizes(settings):
    return {name: settings[name] for name in ("block_size", "num_global_blocks")}


def _random_blocks(settings, length, num_heads, causal):
    """The random blocks of every head, a function of seed, length and heads: drawn anew at each trace, never stored."""
    sizes = {name: settings[name] for name in ("block_size", "num_random_blocks", "num_global_blocks")}
    with jax.ensure_compile_time_eval():  # the pattern must be concrete, also while a model is being traced
        return bigbird_random_blocks(jax.random.key(settings["seed"]), num_heads, length, causal=causal, **sizes)


def lsh(query, key, value, rng, *, settings, causal, **tail):
    given = {name: settings[name] for name in ("num_hashes", "bucket_size")}
    given |= {
        "num_buckets": settings["num_buckets"] or None,
        "correct_duplicates": bool(settings["correct_duplicates"]),
    }
    return lsh_attention(query, value, rng=rng, causal=causal, chunks_after=0 if causal else 1, **given, **tail)


def hash_key(settings, sizes, learned, x, rotate, rng):
    """The key of LSH's rotations: the training step's, as in the paper, or the one of `seed`."""
    return (jax.random.key(settings["seed"]) if rng is None else rng,)


def linear(query, key, value, *, settings, causal, **tail):
    settings = settings | {"feature_map": FEATURE_MAPS[settings["feature_map"]]}
    return linear_attention(query, key, value, causal=causal, **settings, **tail)


def efficient(query, key, value, *, settings, causal, **tail):
    if causal:
        raise NotImplementedError("efficient: each feature is normalised over the whole length; use 'linear'")
    return efficient_attention(query, key, value, scale=1.0, **tail)  # the paper's


def performer(query, key, value, projection, *, settings, causal, **tail):
    return performer_attention(query, key, value, projection, kernel=settings["kernel"], causal=causal, **tail)


def random_features(settings, sizes, learned, x, rotate, rng):
    """Performer's projection: with `redraw` the training step's own, in evaluation and without it that of `seed`."""
    size = settings["num_features"], sizes.head_dim
    if settings["redraw"] and rng is not None:
        return (performer_projection(rng, *size),)
    with jax.ensure_compile_time_eval():  # a constant of the program, not a QR decomposition at every step
        return (performer_projection(jax.random.key(settings["seed"]), *size),)


def linformer(query, key, value, key_projection, value_projection, *, settings, causal, **tail):
    return linformer_attention(query, key, value, key_projection, value_projection, **_one_rng(tail))


def linformer_learned(settings, sizes):
    """The projections over the length: per head, shared by heads, by key and value too, or by the layers as well."""
    rank, sharing = settings["rank"], settings["sharing"]
    shape = (sizes.num_heads, sizes.length, rank) if sharing == "none" else (sizes.length, rank)
    names = ("key_projection", "value_projection") if sharing in ("none", "headwise") else ("projection",)
    return {name: (shape, rank**-0.5) for name in names}  # N(0, 1 / R) keeps lengths: theorem 2 of the paper


def linformer_arrays(settings, sizes, learned, x, rotate, rng):
    names = ("projection", "projection") if "projection" in learned else ("key_projection", "value_projection")
    return tuple(learned[name][...] for name in names)


def retain(query, key, value, *, settings, causal, **tail):
    return retention(query, key, value, **settings, **tail)


def gated_linear(query, key, value, log_decay, *, settings, causal, **tail):
    return gated_linear_attention(query, key, value, log_decay, **settings, **tail)


def decay_learned(settings, sizes):
    """Two thin matrices and a shift make the decays, one per feature of a key head; their rank is the paper's."""
    features = sizes.num_kv_heads * sizes.head_dim
    shapes = {"decay_in": (sizes.width, 16), "decay_out": (16, features)}
    return {name: (shape, shape[0] ** -0.5) for name, shape in shapes.items()} | {"decay_shift": ((features,), 0.0)}


def decays(settings, sizes, learned, x, rotate, rng):
    """log_decay [B, T, K, H] = logsigmoid(x W_in W_out + shift) / 16 (Yang et al. 2024, arXiv:2312.06635)."""
    down, up, shift = (learned[name].astype(x.dtype) for name in ("decay_in", "decay_out", "decay_shift"))
    logits = (x @ down @ up + shift).astype(jnp.float32)
    return (jax.nn.log_sigmoid(logits.reshape(*x.shape[:-1], sizes.num_kv_heads, sizes.head_dim)) / 16,)


def delta_rule(query, key, value, beta, *, settings, causal, **tail):
    return delta_rule_attention(query, key, value, beta, **settings, **tail)


def beta_learned(settings, sizes):
    return {"beta": ((sizes.width, sizes.num_kv_heads), sizes.width**-0.5)}


def betas(settings, sizes, learned, x, rotate, rng):
    """beta [B, T, K] = sigmoid(x W) (Yang et al. 2024, arXiv:2406.06484)."""
    return (jax.nn.sigmoid((x @ learned["beta"].astype(x.dtype)).astype(jnp.float32)),)


def unit_length(query, key):
    """SiLU, then length 1 per head: with beta in (0, 1) the delta rule's state cannot grow."""
    return tuple(_unit(jax.nn.silu(x.astype(jnp.float32))).astype(x.dtype) for x in (query, key))


def _unit(x):
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-6)


def axial(query, key, value, *, settings, causal, grid, key_mask=None, dropout_rate=0.0, dropout_rng=None):
    """The first half of the heads attends along the rows of the grid, the second half along its columns."""
    if key.shape[-2] % 2:  # one of the heads of keys would serve both halves
        key, value = (jnp.repeat(x, query.shape[-2] // key.shape[-2], axis=-2) for x in (key, value))
    halves = (jnp.split(_on(grid, x), 2, axis=-2) for x in (query, key, value))
    mask = None if key_mask is None else key_mask.reshape(-1, *grid)
    attended = [
        axial_attention(*heads, axis=axis, key_mask=mask, dropout_rate=dropout_rate, rng=rng)
        for axis, rng, *heads in zip((2, 1), split_rng(dropout_rng, 2), *halves, strict=True)
    ]
    return jnp.concatenate(attended, axis=-2).reshape(*query.shape[:-1], value.shape[-1])


def grid_window(query, key, value, *, settings, causal, grid, key_mask=None, **tail):
    window, _ = fit_window(grid, settings["window"])
    mask = None if key_mask is None else key_mask.reshape(-1, *grid)
    heads = (_on(grid, x) for x in (query, key, value))
    attended = shifted_window_attention(*heads, window=window, key_mask=mask, **_one_rng(tail))
    return attended.reshape(*query.shape[:-1], value.shape[-1])


def _on(grid, x):
    """[B, T, heads, H] -> [B, rows, columns, heads, H]."""
    return x.reshape(x.shape[0], *grid, *x.shape[2:])


def graph(
    query,
    key,
    value,
    relations,
    *vector,
    settings,
    causal,
    edges,
    key_mask=None,
    query_segment_ids=None,
    key_segment_ids=None,
    return_weights=False,
    **tail,
):
    """Messages along the edges of each row's graph; all rows are one graph of B T nodes.

    dot_product:  score = q_i . (k_j + r) / sqrt(H),   sends v_j + r    (Shaw et al. 2018, arXiv:1803.02155, r for both)
    gatv2:        score = a . leaky_relu(q_i + k_j + r),   sends k_j    (Brody et al. 2022, arXiv:2105.14491, eq. 7)

    r is the vector of the edge's relation. No self-loops are added, and a token that no edge reaches gets 0. With
    `return_weights` the result is the weights in place of what they sum: [B, T, N, T], doubled edges together.
    """
    B, T, N, _ = query.shape
    edges = between_real(edges, key_mask=key_mask, segment_ids=query_segment_ids, causal=causal)
    edges = disjoint_union(edges, T)
    query, key, value = (x.reshape(B * T, *x.shape[2:]) for x in (query, key, value))
    ends = edges.senders, edges.receivers
    tail = _one_rng(tail) | {"edge_mask": edges.mask, "return_weights": return_weights}
    tail["edge_features"] = jnp.take(relations, edges.relations, axis=0)
    if settings["score"] == "gatv2":
        attended = gatv2_attention(jnp.repeat(key, N // key.shape[1], axis=1), query, *ends, *vector, **tail)
    else:
        attended = graph_dot_product_attention(query, key, value, *ends, **tail)
    if not return_weights:
        return attended.reshape(B, T, N, -1)
    weights = jnp.zeros((B * T, T, N)).at[edges.receivers, edges.senders % T].add(attended[1])
    return weights.reshape(B, T, T, N).swapaxes(2, 3)


def graph_learned(settings, sizes):
    """A vector for each relation, in the width of what it is added to; for "gatv2" the one that scores a head."""
    gatv2 = settings["score"] == "gatv2"
    heads = sizes.num_heads if gatv2 else sizes.num_kv_heads
    learned = {"relation_table": ((sizes.num_relations, heads, sizes.head_dim), 0.02)}
    return learned | ({"vector": ((sizes.num_heads, sizes.head_dim), sizes.head_dim**-0.5)} if gatv2 else {})


def graph_arrays(settings, sizes, learned, x, rotate, rng):
    return tuple(learned[name].astype(x.dtype) for name in ("relation_table", "vector") if name in learned)


def graph_projected(settings):
    return ("query", "key") if settings["score"] == "gatv2" else ("query", "key", "value")


def no_mask(settings, length, num_heads=1, *, causal=True):
    """None: no pair is masked, or which pairs meet depends on what the tokens are."""
    return None


def _one_rng(tail):
    """The tail of a function whose only random numbers are dropout's."""
    return {"rng" if name == "dropout_rng" else name: x for name, x in tail.items()}
