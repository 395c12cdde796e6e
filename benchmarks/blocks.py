"""Which block sizes, and how many heads at a time: the sweep behind the constants of the blockwise engine.

python benchmarks/blocks.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from timing import compile_all, measure

import attention
from attention import blockwise

SIZES = (512, 256, 128, 64, 32)
SCORES = (18, 17, 16, 15, 14)


def main():
    keys = jax.random.split(jax.random.key(0), 3)
    args = tuple(jax.random.normal(k, (1, 4096, 8, 64)) for k in keys)
    for window in (None, (256, 0)):
        for backward in (False, True):
            sides = {}
            for size in SIZES:
                for scores in SCORES:
                    blockwise.SCORES_AT_ONCE = {jax.default_backend(): 1 << scores}
                    compiled, _ = compile_all({(size, scores): _attend(size, window, backward)}, args)
                    sides |= compiled
            times = measure(sides, args, rounds=5)
            print(f"window {window}, {'forward+backward' if backward else 'forward'}: block, log2 scores, median ms")
            for (size, scores), t in sorted(times.items(), key=lambda item: np.median(item[1])):
                print(f"  {size:4d} {scores:3d} {np.median(t) * 1e3:8.1f}", flush=True)


def _attend(size, window, backward):
    def forward(query, key, value):
        return attention.dot_product_attention(
            query, key, value, is_causal=True, local_window_size=window, block_sizes=(size, size)
        )

    if not backward:
        return forward
    return jax.grad(lambda query, key, value: forward(query, key, value).sum(), argnums=(0, 1, 2))


if __name__ == "__main__":
    main()
