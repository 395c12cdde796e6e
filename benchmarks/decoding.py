"""Milliseconds to decode one token, against how much text came before: growing for a full cache, flat for the others.

    python benchmarks/decoding.py                 # every state; needs jax and numpy only
    python benchmarks/decoding.py --rounds=3 --json=out.json

Float32, B=1, N=8, H=64, one attention layer without its projections. A state that has seen `context` tokens takes
TOKENS more in one compiled program that writes it in place. Medians of interleaved rounds after a warm-up.
"""

import dataclasses
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import command
import jax
import jax.numpy as jnp
import numpy as np
from timing import measure

from attention.cache import KeyValueCache, cached_attention
from attention.delta_rule import delta_rule_attention
from attention.gated_linear import retention
from attention.linear import linear_attention

B, N, H = 1, 8, 64
WINDOW = 256
TOKENS = 16
CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384)


def full(context):
    """A cache of as many slots as there are tokens in the end."""
    cache = KeyValueCache.create((B,), N, H, capacity=context + TOKENS)
    return cached_step, taken_up(cache, context)


def window(context):
    """A ring of WINDOW + 1 slots."""
    return cached_step, taken_up(KeyValueCache.create((B,), N, H, window=WINDOW), context)


def linear(context):
    """Sums over the features of elu + 1, H (H + 1) numbers a head."""
    return recurrent(functools.partial(linear_attention, causal=True), context)


def decayed(context):
    """RetNet's decayed sums, H^2 numbers a head."""
    return recurrent(retention, context)


def delta(context):
    """DeltaNet's corrected sums, H^2 numbers a head, from keys of length 1."""

    def attend(query, key, value, **state):
        key = key / jnp.linalg.norm(key, axis=-1, keepdims=True)
        return delta_rule_attention(query, key, value, jnp.full(key.shape[:-1], 0.5), **state)

    return recurrent(attend, context)


STATES = {"full cache": full, f"window {WINDOW}": window, "linear": linear, "retention": decayed, "delta rule": delta}


def cached_step(cache, token):
    out, cache = cached_attention(*token, cache)
    return cache, out


def taken_up(cache, context):
    _, key, value = text(context)
    positions = jnp.broadcast_to(jnp.arange(context, dtype=jnp.int32), (B, context))
    return jax.jit(lambda cache: cache.append(key, value, positions))(cache)


def recurrent(attend, context):
    def step(state, token):
        out, state = attend(*token, initial_state=state, return_state=True)
        return state, out

    _, state = jax.jit(functools.partial(attend, return_state=True))(*text(context))
    return step, state


def text(length, seed=0):
    """Query, key and value of as many tokens."""
    return tuple(jax.random.normal(k, (B, length, N, H)) for k in jax.random.split(jax.random.key(seed), 3))


def side(step, state):
    """A function without arguments that decodes TOKENS tokens, always after the same number of others."""
    tokens = [jnp.moveaxis(x[:, None], 2, 0) for x in text(TOKENS, seed=1)]
    run = jax.jit(lambda state, tokens: jax.lax.scan(step, state, tokens), donate_argnums=0)
    held, length = [state], np.asarray(state.length) if isinstance(state, KeyValueCache) else None

    def decode():
        state, out = run(held.pop(), tokens)
        held.append(state if length is None else dataclasses.replace(state, length=jnp.asarray(length)))
        return out

    return decode


def run_context(context, rounds):
    times = measure({name: side(*make(context)) for name, make in STATES.items()}, (), rounds=rounds)
    return {name: round(float(np.median(t)) / TOKENS * 1e3, 3) for name, t in times.items()}


def main():
    options = command.parser(__doc__, rounds=5).parse_args()
    command.print_machine()
    print("ms per token".ljust(14) + "".join(name.rjust(14) for name in STATES), flush=True)
    rows = []
    for context in CONTEXTS:
        rows.append({"context": context, "ms_per_token": run_context(context, options.rounds)})
        print(f"{context:<14,}" + "".join(f"{t:14.3f}" for t in rows[-1]["ms_per_token"].values()), flush=True)
    command.write(options.json, rows)


if __name__ == "__main__":
    main()
