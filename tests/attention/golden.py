"""Golden cases: inputs, outputs and gradients that other people's libraries computed, and the comparison with ours."""

import json
from pathlib import Path

import jax
import numpy as np

GOLDENS = Path(__file__).parents[1] / "goldens"


def load(case):
    arrays = dict(np.load(GOLDENS / f"{case}.npz"))
    return arrays, json.loads(str(arrays.pop("__meta__")))


def heads_inside(x):
    """[B, N, T, H], torch's order, to ours; its own inverse."""
    return np.swapaxes(x, 1, 2)


def assert_matches(fn, given, cotangent, out, gradients, noise, sizes=None):
    """`fn(*given)` within 4 times the peer's own float32 noise, and the gradients of sum(fn(*given) * cotangent) too.

    The noise was measured on the outputs. A gradient passes through all their products and as many on the way back, so
    it is allowed twice the noise, in proportion to its largest number, or to that of `sizes`: where the terms of a
    gradient cancel, as those of a key's bias do to 0, what is left is the noise of the terms.
    """

    @jax.jit
    def run(*given):
        ours, pullback = jax.vjp(fn, *given)
        return ours, pullback(cotangent)

    ours, ours_gradients = run(*given)
    np.testing.assert_allclose(ours, out, rtol=0, atol=4 * noise)
    largest = np.abs(out).max()
    for got, want, size in zip(ours_gradients, gradients, sizes or gradients, strict=True):
        atol = 2 * 4 * noise * max(1, np.abs(size).max() / largest)
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)
