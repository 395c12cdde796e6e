"""Speed and memory of the attention functions beside jax.nn and, where it is installed, PyTorch.

    python benchmarks/speed.py                 # every row; needs jax and numpy only
    python benchmarks/speed.py --only=causal   # rows whose name contains "causal"
    python benchmarks/speed.py --rounds=3 --json=out.json

Float32, B=1, N=8, H=64. Medians of interleaved rounds after a warm-up; compile time apart; ratios are medians over
rounds, both sides in the same round. Temporary memory is what XLA plans for the compiled program.
"""

import functools
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import command
import jax
import numpy as np
from timing import compile_all, measure, ratio

import attention
from attention.biases import ALiBi

B, N, H = 1, 8, 64


def causal(query, key, value):
    return attention.dot_product_attention(query, key, value, is_causal=True)


def jax_nn(query, key, value):
    return jax.nn.dot_product_attention(query, key, value, is_causal=True)


def window(query, key, value):
    return attention.dot_product_attention(query, key, value, is_causal=True, local_window_size=(256, 0))


def alibi(query, key, value):
    bias = ALiBi(attention.alibi_slopes(N))
    return attention.dot_product_attention(query, key, value, bias, is_causal=True)


def longformer(query, key, value):
    slots = np.arange(16)
    return attention.longformer_attention(query, key, value, window=256, global_positions=slots, causal=True)


def bigbird(query, key, value):
    with jax.ensure_compile_time_eval():  # the pattern shapes the program: its key must be concrete
        rng = jax.random.key(0)
    return attention.bigbird_attention(query, key, value, block_size=64, num_random_blocks=3, rng=rng, causal=True)


def strided(query, key, value):
    stride = int(round(query.shape[-3] ** 0.5))
    return attention.sparse_transformer_attention(query, key, value, pattern="strided", stride=stride)


def fixed(query, key, value):
    stride = int(round(query.shape[-3] ** 0.5))
    return attention.sparse_transformer_attention(
        query, key, value, pattern="fixed", stride=stride, summary=stride // 8
    )


def linear(query, key, value):
    return attention.linear_attention(query, key, value, causal=True)


def local(query, key, value):
    return attention.local_attention(query, key, value, window=128, causal=True)


def lsh(query, key, value):
    with jax.ensure_compile_time_eval():
        rng = jax.random.key(0)
    return attention.lsh_attention(query + key, value, num_hashes=2, bucket_size=64, rng=rng, causal=True)


def performer(query, key, value):
    projection = attention.performer_projection(jax.random.key(0), 256, H)
    return attention.performer_attention(query, key, value, projection, causal=True)


def linformer(query, key, value):
    """Not causal."""
    projections = jax.random.normal(jax.random.key(0), (2, query.shape[-3], 256)) / query.shape[-3] ** 0.5
    return attention.linformer_attention(query, key, value, *projections)


def retention(query, key, value):
    return attention.retention(query, key, value)


def gated(query, key, value):
    return attention.gated_linear_attention(query, key, value, -jax.nn.softplus(key) / 16)


def delta(query, key, value):
    key = key / np.sqrt(H)  # the layer makes keys of unit length
    return attention.delta_rule_attention(query, key, value, jax.nn.sigmoid(value[..., 0]))


def gradient(function):
    """Forward and backward, with a cotangent of ones."""
    return jax.grad(lambda query, key, value: function(query, key, value).sum(), argnums=(0, 1, 2))


# name, length, forward or forward and backward, sides (the first is the base of the ratios), whether torch joins
ROWS = [
    ("causal forward", 1024, False, {"ours": causal, "jax.nn": jax_nn}, True),
    ("causal forward+backward", 1024, True, {"ours": causal, "jax.nn": jax_nn}, True),
    ("causal forward", 4096, False, {"ours": causal, "jax.nn": jax_nn}, True),
    ("causal forward+backward", 4096, True, {"ours": causal, "jax.nn": jax_nn}, True),
    ("causal with ALiBi forward", 4096, False, {"ours": alibi, "without": causal}, False),
    *(
        (f"variants {'forward+backward' if backward else 'forward'}", length, backward, variants, False)
        for length in (4096, 16384)
        for backward in (False, True)
        for variants in [
            {"window 256": window, "local": local, "longformer": longformer, "bigbird": bigbird, "strided": strided,
             "fixed": fixed, "lsh": lsh, "linear": linear, "performer": performer, "linformer": linformer,
             "retention": retention, "gated": gated, "delta rule": delta},
        ]
    ),
]  # fmt: skip


def inputs(length):
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(jax.random.normal(k, (B, length, N, H)) for k in keys)


def torch_side(args, backward):
    """PyTorch's scaled_dot_product_attention on the same numbers, or None where torch is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(os.cpu_count())
    tensors = [torch.tensor(np.asarray(x)).transpose(1, 2).contiguous() for x in args]
    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True)

    def forward(*_):
        with torch.no_grad():
            attend(*tensors)
        return 0

    def both(*_):
        leaves = [t.detach().requires_grad_() for t in tensors]
        attend(*leaves).sum().backward()
        return 0

    return both if backward else forward


def run_row(name, length, backward, sides, with_torch, rounds):
    args = inputs(length)
    compiled, seconds = compile_all({n: gradient(f) if backward else f for n, f in sides.items()}, args)
    temporary = {n: c.memory_analysis().temp_size_in_bytes for n, c in compiled.items()}
    if with_torch and (other := torch_side(args, backward)):
        compiled["torch"] = other
    times = measure(compiled, args, rounds=rounds)
    base = next(iter(sides))
    return [
        {
            "row": name, "T": length, "side": n, "median_ms": round(float(np.median(t)) * 1e3, 1),
            "min_ms": round(float(t.min()) * 1e3, 1), f"{base} is faster by": round(ratio(times, n, base), 2),
            "compile_s": round(seconds.get(n, 0), 1), "temporary_MiB": round(temporary.get(n, 0) / 2**20, 1),
        }
        for n, t in times.items()
    ]  # fmt: skip


def window_growth(rounds):
    """Causal window 256 at T = 65,536 against 16 times T = 4,096: 1 is exactly linear."""
    short, long = inputs(4096), inputs(65536)
    sides = {"T=4096": jax.jit(lambda: window(*short)), "T=65536": jax.jit(lambda: window(*long))}
    times = measure(sides, (), rounds=rounds)
    growth = float(np.median(times["T=65536"] / times["T=4096"])) / 16
    return [
        {"row": "window 256 growth", "T": int(n[2:]), "side": "ours", "median_ms": round(float(np.median(t)) * 1e3, 1),
         "over 16 x T=4096": round(growth, 2)}
        for n, t in times.items()
    ]  # fmt: skip


def main():
    parser = command.parser(__doc__, rounds=7)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args()
    command.print_machine()
    rows = []
    for name, length, backward, sides, with_torch in ROWS:
        if options.only in name:
            rows += show(run_row(name, length, backward, sides, with_torch, options.rounds))
    if options.only in "window growth":
        rows += show(window_growth(options.rounds))
    command.write(options.json, rows)


def show(rows):
    for row in rows:
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    return rows


if __name__ == "__main__":
    main()
