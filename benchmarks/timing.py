"""Timing several functions side by side, so that a machine whose speed drifts slows all of them alike."""

import time

import jax
import numpy as np


def compile_all(sides, args):
    """Compiles `{name: function}` for `args`; returns the compiled functions and the seconds each took."""
    compiled, seconds = {}, {}
    for name, function in sides.items():
        start = time.perf_counter()
        compiled[name] = jax.jit(function).lower(*args).compile()
        seconds[name] = time.perf_counter() - start
    return compiled, seconds


def measure(sides, args, *, rounds=7):
    """Wall times in seconds of `{name: function}`, called in turn: `{name: array [rounds]}`.

    One call each for warm-up is not counted. Every call is waited for.
    """
    for function in sides.values():
        jax.block_until_ready(function(*args))
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, function in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*args))
            times[name].append(time.perf_counter() - start)
    return {name: np.array(t) for name, t in times.items()}


def ratio(times, name, base):
    """Median over rounds of `name`'s time over `base`'s in the same round."""
    return float(np.median(times[name] / times[base]))
