"""Forward and backward beside the PyTorch packages that implement the same mechanisms, side by side in one run.

    pip install -e '.[benchmarks]'
    python benchmarks/peers.py                    # every row
    python benchmarks/peers.py --only=reformer    # rows whose name contains "reformer"
    python benchmarks/peers.py --forward --rounds=5 --json=out.json

Float32, B=1, T=4096, N=8, H=64, all cores for both. Where the peer is a layer with projections, ours is given the same
projections; the last row says what those cost alone. Swin's rows are two whole layers of a first stage instead, and the
axial rows one layer along each axis of two images of 64 x 64 with 128 features; the graph rows one layer over 20,000
nodes and 200,000 random edges. Medians of rounds in which the sides take turns.
"""

import functools
import importlib.metadata
import os
import sys
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import command
import jax
import jax.numpy as jnp
import numpy as np
import torch
from timing import compile_all, measure, ratio

import attention
from attention import relative_position_bias, window_attention, window_merge, window_partition, window_regions

T, N, H = 4096, 8, 64
E = N * H
PACKAGES = (
    "torch",
    "transformers",
    "performer-pytorch",
    "linformer",
    "local-attention",
    "axial-attention",
    "torch_geometric",
)


def hidden():
    return np.random.default_rng(0).standard_normal((1, T, E)).astype(np.float32)


def heads():
    """query, key and value [1, T, N, H]."""
    return np.random.default_rng(1).standard_normal((3, 1, T, N, H)).astype(np.float32)


def layer(attend, projections, out=False):
    """(x, weights) -> attention over projections of x; with `out` projected back, as some peers do."""

    def apply(x, *weights):
        projected = [(x @ w).reshape(1, T, N, H) for w in weights[:projections]]
        attended = attend(*projected, *weights[projections + out :]).reshape(1, T, E)
        return attended @ weights[projections] if out else attended

    weights = [np.random.default_rng(i).standard_normal((E, E)).astype(np.float32) / E**0.5 for i in range(6)]
    return apply, (hidden(), *weights[: projections + out])


def torch_layer(module, call=lambda module, x: module(x)):
    """The peer's layer as a function of no arguments, forward, or forward and backward to input and weights."""
    module.train()
    return torch_pass(lambda x: call(module, x), [hidden()], list(module.parameters()))


def torch_function(attend):
    return torch_pass(attend, [np.ascontiguousarray(x.swapaxes(1, 2)) for x in heads()], [])


def torch_pass(function, arrays, weights):
    leaves = [torch.tensor(x, requires_grad=True) for x in arrays]

    def run(backward):
        with torch.set_grad_enabled(backward):
            out = function(*leaves)
        if backward:
            cotangent = torch.tensor(cotangents(tuple(out.shape)))
            torch.autograd.grad(out, leaves + weights, cotangent, allow_unused=True)
        return 0

    return run


@functools.cache
def cotangents(shape):
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


def longformer():
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    settings = LongformerConfig(
        hidden_size=E, num_attention_heads=N, attention_window=[512], attention_probs_dropout_prob=0.0
    )
    is_global = torch.arange(T)[None] < 16
    masks = {
        "attention_mask": torch.where(is_global, 10000.0, 0.0),
        "is_index_masked": torch.zeros(1, T, dtype=torch.bool),
        "is_index_global_attn": is_global,
        "is_global_attn": True,
    }

    def ours(query, key, value, *global_arrays):
        names = "global_query", "global_key", "global_value"
        return attention.longformer_attention(
            query,
            key,
            value,
            window=256,
            global_positions=jnp.arange(16),
            **dict(zip(names, global_arrays, strict=True)),
        )

    module = LongformerSelfAttention(settings, 0)
    return *layer(ours, 6), torch_layer(module, lambda module, x: module(x, **masks)[0])


def bigbird():
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

    settings = BigBirdConfig(
        hidden_size=E, num_attention_heads=N, block_size=64, num_random_blocks=3, max_position_embeddings=T
    )
    blocks = np.asarray(attention.bigbird_random_blocks(jax.random.key(0), N, T, 64, 3))

    def ours(query, key, value):
        return attention.bigbird_attention(query, key, value, block_size=64, random_blocks=blocks)

    ones = torch.ones(1, T)
    blocked = ones.view(1, T // 64, 64)
    around = torch.cat([blocked[:, 1:-3], blocked[:, 2:-2], blocked[:, 3:-1]], dim=2)
    band = torch.einsum("blq,blk->blqk", blocked[:, 2:-2], around)[:, None]
    masks = band, ones.view(1, 1, T, 1), ones.view(1, 1, 1, T), blocked, blocked
    module = BigBirdBlockSparseAttention(settings, seed=0)
    side = torch_layer(module, lambda module, x: module(x, *masks)[0])
    module.eval()  # in training it draws its pattern anew in every call
    return *layer(ours, 3), side


def reformer():
    from transformers import ReformerConfig
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    settings = ReformerConfig(
        hidden_size=E, num_attention_heads=N, attention_head_size=H, lsh_attn_chunk_length=64, num_hashes=2,
        num_buckets=128, is_decoder=True, lsh_attention_probs_dropout_prob=0.0, max_position_embeddings=T,
    )  # fmt: skip

    def ours(query_key, value):
        rotations = attention.lsh_rotations(jax.random.key(0), N, H, 2, 128)
        return attention.lsh_attention(
            query_key, value, num_hashes=2, bucket_size=64, num_buckets=128, rotations=rotations, causal=True
        )

    module = LSHSelfAttention(settings)
    return *layer(ours, 2), torch_layer(module, lambda module, x: module(x)[0])


def performer(causal=False):
    from performer_pytorch import FastAttention

    projection = np.asarray(attention.performer_projection(jax.random.key(0), 256, H))

    def ours(query, key, value):
        return attention.performer_attention(query, key, value, projection, causal=causal)

    return ours, tuple(heads()), torch_function(FastAttention(H, nb_features=256, causal=causal))


def linear():
    from performer_pytorch.performer_pytorch import linear_attention

    def theirs(query, key, value):
        return linear_attention(*(torch.nn.functional.elu(x) + 1 for x in (query, key)), value)

    return attention.linear_attention, tuple(heads()), torch_function(theirs)


def linformer():
    from linformer import LinformerSelfAttention

    rank = 256
    ours, weights = layer(attention.linformer_attention, 3, out=True)
    projections = np.random.default_rng(9).standard_normal((2, T, rank)).astype(np.float32) / T**0.5
    return ours, (*weights, *projections), torch_layer(LinformerSelfAttention(E, T, k=rank, heads=N))


def local(causal):
    from local_attention import LocalAttention

    def ours(query, key, value):
        return attention.local_attention(query, key, value, window=256, causal=causal)

    theirs = LocalAttention(
        window_size=256, causal=causal, look_backward=1, look_forward=0 if causal else 1, use_rotary_pos_emb=False
    )
    return ours, tuple(heads()), torch_function(theirs)


def swin(implementation):
    """Two layers of Swin-T's first stage, the second shifted, with the peer's own weights."""
    from transformers import SwinConfig
    from transformers.models.swin.modeling_swin import SwinLayer

    side, width, num_heads, shifts = 56, 96, 3, (0, 3)
    settings = SwinConfig(window_size=7, attn_implementation=implementation)
    layers = [SwinLayer(settings, width, (side, side), num_heads, shift_size=shift) for shift in shifts]
    x = np.random.default_rng(0).standard_normal((8, side * side, width)).astype(np.float32)
    weights = [{name: matrix_first(name, p) for name, p in layer.named_parameters()} for layer in layers]

    def ours(x, *weights):
        x = x.reshape(-1, side, side, width)
        for w, shift in zip(weights, shifts, strict=True):
            x = swin_layer(x, w, shift, num_heads)
        return x.reshape(-1, side * side, width)

    def theirs(x):
        for layer in layers:
            x = layer(x, (side, side))[0]
        return x

    return ours, (x, *weights), torch_pass(theirs, [x], [p for layer in layers for p in layer.parameters()])


def matrix_first(name, parameter):
    """A weight as x @ w wants it; torch keeps the transpose."""
    array = parameter.detach().numpy()
    return array if array.ndim == 1 or "table" in name else np.ascontiguousarray(array.T)


def swin_layer(x, w, shift, num_heads):
    """As in the peer, windows are cut before the projections; one product makes query, key and value."""

    def linear(x, *names):
        # Flat: with several leading axes XLA transposes the cotangent for the weight's gradient, up to 4 times as slow.
        matrix, bias = (jnp.concatenate([w[f"{name}.{part}"] for name in names], -1) for part in ("weight", "bias"))
        return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], -1) + bias

    def norm(x, name):
        mean, square = x.mean(-1, keepdims=True), (x * x).mean(-1, keepdims=True)
        inverse = jax.lax.rsqrt(square - mean * mean + 1e-5)
        x = x * inverse - mean * inverse  # this way the backward pass keeps no x - mean
        return x * w[f"layernorm_{name}.weight"] + w[f"layernorm_{name}.bias"]

    grid = x.shape[1:3]
    cut = window_partition(norm(x, "before")[..., None, :], 7, shift)[..., 0, :]
    projected = linear(cut, *(f"attention.{name}_proj" for name in "qkv"))
    arrays = (y.reshape(*cut.shape[:-1], num_heads, -1) for y in jnp.split(projected, 3, -1))
    bias = relative_position_bias(w["attention.relative_position_bias.relative_position_bias_table"], 7)
    attended = window_attention(*arrays, bias=bias, regions=window_regions(grid, 7, shift)).reshape(cut.shape)
    x = x + window_merge(linear(attended, "attention.o_proj")[..., None, :], grid, 7, shift)[..., 0, :]
    hidden = linear(norm(x, "after"), "mlp.fc1")
    hidden = 0.5 * hidden * (1 + jax.lax.erf(hidden * 0.5**0.5))  # the exact GELU; by erfc, as in jax.nn, it is slower
    return x + linear(hidden, "mlp.fc2")


def axial(**tables):
    """Attention along rows and along columns, added up, with the peer's own weights; its layer has no tables."""
    from axial_attention import AxialAttention

    module = AxialAttention(dim=128, dim_index=-1, heads=N, num_dimensions=2)
    x = np.random.default_rng(0).standard_normal((2, 64, 64, 128)).astype(np.float32)
    weights = [
        {name: matrix_first(name, p) for name, p in layer.named_parameters()} for layer in module.axial_attentions
    ]

    def ours(x, *weights):
        out = 0
        for w, axis in zip(weights, (1, 2), strict=True):
            projected = x @ w["fn.to_q.weight"], *jnp.split(x @ w["fn.to_kv.weight"], 2, axis=-1)
            arrays = (y.reshape(*x.shape[:-1], N, -1) for y in projected)
            attended = attention.axial_attention(*arrays, axis=axis, **tables).reshape(x.shape)
            out += attended @ w["fn.to_out.weight"] + w["fn.to_out.bias"]
        return out

    return ours, (x, *weights), torch_pass(module, [x], list(module.parameters()))


def axial_position_sensitive():
    table = np.random.default_rng(3).standard_normal((127, 16)).astype(np.float32)
    return axial(query_table=table, key_table=table, value_table=table)


def graph(version):
    """64 features to 8 heads of 8 with the peer's weights; both sides get the edges, in no order, with every call."""
    import torch_geometric.nn

    rng = np.random.default_rng(0)
    senders, receivers = rng.integers(0, 20_000, (2, 200_000)).astype(np.int32)
    x = rng.standard_normal((20_000, 64)).astype(np.float32)
    module = getattr(torch_geometric.nn, f"{version}Conv")(64, 8, heads=8, add_self_loops=False)
    weights = {name: matrix_first("table" if "att" in name else name, p) for name, p in module.named_parameters()}

    def ours(x, w, *edges):
        def project(name):
            return (x @ w[f"{name}.weight"] + w.get(f"{name}.bias", 0)).reshape(-1, 8, 8)

        if version == "GAT":
            out = attention.gat_attention(project("lin"), *edges, w["att_src"][0], w["att_dst"][0])
        else:
            out = attention.gatv2_attention(project("lin_l"), project("lin_r"), *edges, w["att"][0])
        return out.reshape(x.shape) + w["bias"]

    edges = torch.tensor(np.stack([senders, receivers]), dtype=torch.int64)
    theirs = torch_pass(lambda x: module(x, edges), [x], list(module.parameters()))
    return ours, (x, weights, senders, receivers), theirs


def projections():
    def ours(*arrays):
        return sum(arrays)

    module = torch.nn.ModuleList([torch.nn.Linear(E, E, bias=False) for _ in range(3)])
    return *layer(ours, 3), torch_layer(module, lambda module, x: sum(linear(x) for linear in module))


ROWS = {
    "longformer: transformers, 256 each side + 16 global, 6 projections": longformer,
    "bigbird: transformers, block 64, 3 random, 3 projections": bigbird,
    "reformer: transformers, chunk 64, 2 hashes, causal, 2 projections": reformer,
    "performer: performer-pytorch, 256 features": performer,
    "performer: performer-pytorch, 256 features, causal": lambda: performer(causal=True),
    "linear elu+1: performer-pytorch": linear,
    "linformer: linformer, R = 256, 4 projections": linformer,
    "local: local-attention, window 256, causal, 1 back": lambda: local(True),
    "local: local-attention, window 256, 1 back 1 forward": lambda: local(False),
    "swin: transformers' two layers, eager, B = 8, 56 x 56 x 96": lambda: swin("eager"),
    "swin: transformers' two layers, sdpa, B = 8, 56 x 56 x 96": lambda: swin("sdpa"),
    "axial: axial-attention, B = 2, 64 x 64 x 128, both axes": axial,
    "axial: the same, ours position-sensitive, the peer not": axial_position_sensitive,
    "graph: torch_geometric's GATConv, 20,000 nodes, 200,000 edges, 64 to 8 x 8": lambda: graph("GAT"),
    "graph: torch_geometric's GATv2Conv, the same": lambda: graph("GATv2"),
    "(3 projections alone)": projections,
}


def with_gradient(function, args):
    """Output and gradients of all but integers, for a random cotangent: nothing that XLA could leave out."""
    cotangent = jnp.asarray(cotangents(jax.eval_shape(function, *args).shape))
    floats = sum(not jnp.issubdtype(jax.tree.leaves(arg)[0].dtype, jnp.integer) for arg in args)  # these come first

    def run(*args):
        out, pullback = jax.vjp(lambda *given: function(*given, *args[floats:]), *args[:floats])
        return out, pullback(cotangent)

    return run


def run_row(name, make, backward, rounds):
    ours, args, theirs = make()
    args = jax.tree.map(jnp.asarray, args)
    compiled, seconds = compile_all({"ours": with_gradient(ours, args) if backward else ours}, args)
    sides = {"ours": lambda: compiled["ours"](*args), "peer": lambda: theirs(backward)}
    times = measure(sides, (), rounds=rounds)
    return {
        "row": name, "pass": "forward+backward" if backward else "forward",
        "ours_ms": round(float(np.median(times["ours"])) * 1e3, 1),
        "peer_ms": round(float(np.median(times["peer"])) * 1e3, 1),
        "peer / ours": round(ratio(times, "peer", "ours"), 2), "compile_s": round(seconds["ours"], 1),
    }  # fmt: skip


def main():
    parser = command.parser(__doc__, rounds=5)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--forward", action="store_true", help="the forward pass alone")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    versions = "  ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    print(f"{date.today()}  jax {jax.__version__}  {versions}  {os.cpu_count()} cores", flush=True)
    rows = []
    for name, make in ROWS.items():
        if options.only in name:
            rows.append(run_row(name, make, not options.forward, options.rounds))
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    command.write(options.json, rows)


if __name__ == "__main__":
    main()
