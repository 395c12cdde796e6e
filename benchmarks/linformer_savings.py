"""How many times less time and memory Linformer takes than full attention, over lengths n and ranks k: its table 3.

    python benchmarks/linformer_savings.py                 # needs jax and numpy only
    python benchmarks/linformer_savings.py --rounds=3 --json=out.json

Forward alone, float32, B=1, N=8, H=64, both sides visible, one k by n matrix for keys and values (layerwise sharing).
Time: medians over interleaved rounds after a warm-up, each beside `attention.dot_product_attention` of the same round.
Memory: what the compiled programs hold besides their inputs, beside `jax.nn.dot_product_attention`, which keeps all
n x n scores as the paper's Transformer does; ours keeps none of them, and so hardly any memory is left to save on it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import command
import jax
from timing import compile_all, measure, ratio

import attention

B, N, H = 1, 8, 64
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
RANKS = (128, 256, 512, 1024)


def mixed(rank):
    """Linformer's function of query, key, value and a matrix of at least this rank."""

    def attend(query, key, value, matrix):
        return attention.linformer_attention(query, key, value, matrix[:, :rank], matrix[:, :rank])

    return attend


def full(query, key, value, matrix):
    """Every pair of tokens, in blocks."""
    return attention.dot_product_attention(query, key, value)


def all_scores(query, key, value, matrix):
    """Every pair of tokens at once."""
    return jax.nn.dot_product_attention(query, key, value)


def run_length(length, rounds):
    """{"n", "time_saved" and "memory_saved" of each rank below n, "seconds" and "bytes" of each side}."""
    ranks = [rank for rank in RANKS if rank < length]
    *keys, last = jax.random.split(jax.random.key(0), 4)
    inputs = [jax.random.normal(key, (B, length, N, H)) for key in keys]
    args = *inputs, jax.random.normal(last, (length, max(ranks))) / length**0.5
    timed, _ = compile_all({"full": full} | {rank: mixed(rank) for rank in ranks}, args)
    dense = jax.jit(all_scores).lower(*args).compile()
    size = {name: held(program) for name, program in {**timed, "all scores": dense}.items()}
    times = measure(timed, args, rounds=rounds)
    return {
        "n": length,
        "time_saved": {rank: 1 / ratio(times, rank, "full") for rank in ranks},
        "memory_saved": {rank: size["all scores"] / size[rank] for rank in ranks},
        "seconds": {name: sorted(t)[rounds // 2] for name, t in times.items()},
        "bytes": size,
    }


def held(program):
    """Bytes of a compiled program's temporary buffers and output."""
    memory = program.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def main():
    options = command.parser(__doc__, rounds=5).parse_args()
    command.print_machine()
    print("n".ljust(8) + "".join(f"{what} k={k}".rjust(13) for what in ("time", "mem.") for k in RANKS))
    rows = []
    for length in LENGTHS:
        rows.append(row := run_length(length, options.rounds))
        cells = [row[table].get(rank) for table in ("time_saved", "memory_saved") for rank in RANKS]
        print(f"{length:<8,}" + "".join(f"{'' if c is None else f'{c:.2f}':>13}" for c in cells), flush=True)
    command.write(options.json, rows)


if __name__ == "__main__":
    main()
