"""The attention layer of Swin, versions 1 and 2: projections, heads in windows, biases of relative positions."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from attention import swin, swin_bias
from models.layers import normal, product, zeros

POSITION_WIDTH = 512  # hidden numbers of version 2's map from distances to biases (Liu et al. 2022, the authors' code)


class WindowAttention(nnx.Module):
    """Heads of attention in windows, with a bias for each relative position.

        version 1:  weights = softmax(Q K^T / sqrt(H) + B)               B = table[row distance, column distance]
        version 2:  weights = softmax(cos(Q, K) min(e^s, 100) + B)       B = 16 sigmoid(W_2 relu(W_1 c + b))

    `s` is learned per head and starts at log 10; `c` are log-spaced distances, which carry over to other windows.
    Version 2's keys have no bias: the authors fix it to 0.

    Args:
      config: reads version, attention, attention_dropout.
      width: features of a token.
      num_heads: N.
      window: the largest window, which decides the size of version 1's table and the unit of version 2's distances.
      rngs: draws the parameters.
    """

    def __init__(self, config, width, num_heads, *, window, rngs):
        self.version, self.rate = config.version, config.attention_dropout
        heads = num_heads, width // num_heads
        self.query, self.key, self.value = (normal(rngs, (width, *heads)) for _ in range(3))
        self.query_bias, self.value_bias = (zeros(*heads) for _ in range(2))
        self.out, self.out_bias = normal(rngs, (*heads, width)), zeros(width)
        if self.version == 1:
            self.key_bias = zeros(*heads)
        else:
            self.log_scale = nnx.Param(jnp.full(num_heads, jnp.log(10.0)))
        self.biased = bool(config.attention.relative_bias)
        if self.biased:
            position = PositionTable if self.version == 1 else PositionNetwork
            self.position = position(num_heads, window, rngs=rngs)

    def __call__(self, x, window, shift, rng):
        """Attends within windows of `x [B, rows, columns, width]`; returns the same shape."""
        rate = 0.0 if rng is None else self.rate
        attended = self.attend(*self.heads(x), window, shift, dropout_rate=rate, rng=rng)
        out = self.out.reshape(-1, x.shape[-1])
        return product(attended.reshape(x.shape), out) + self.out_bias.astype(x.dtype)

    def weights(self, x, window, shift):
        """The weights themselves, float32 [B, N, T, T]: attention is linear in value, so unit vectors show them."""
        query, key, _ = (head.astype(jnp.float32) for head in self.heads(x))
        batch, rows, columns, num_heads, _ = query.shape
        units = jnp.eye(rows * columns).reshape(1, rows, columns, 1, -1)
        units = jnp.broadcast_to(units, (batch, rows, columns, num_heads, rows * columns))
        shown = self.attend(query, key, units, window, shift)
        return jnp.moveaxis(shown.reshape(batch, rows * columns, num_heads, -1), 2, 1)

    def heads(self, x):
        """Query, key and value: [B, rows, columns, N, H] each."""

        def project(w, bias):
            head = product(x, w)
            return head if bias is None else head + bias.astype(x.dtype)

        key_bias = self.key_bias if self.version == 1 else None
        return project(self.query, self.query_bias), project(self.key, key_bias), project(self.value, self.value_bias)

    def attend(self, query, key, value, window, shift, **dropout):
        """The attention function on heads, [B, rows, columns, N, H] -> the same shape."""
        bias = self.position(window) if self.biased else None
        attend = functools.partial(swin.shifted_window_attention, window=window, shift=shift, bias=bias, **dropout)
        if self.version == 1:
            return attend(query, key, value)
        # Wide before the cosine: a rounding of a narrow number, times a scale of up to 100, would be felt.
        query, key, wide = (x.astype(jnp.float32) for x in (query, key, value))
        query, key = swin_bias.cosine_queries_and_keys(query, key, self.log_scale[...])
        return attend(query, key, wide, scale=1.0).astype(value.dtype)


class PositionTable(nnx.Module):
    """Version 1's bias [N, w^2, w^2]: a learned number for each head and relative position (Liu et al. 2021, eq. 4).

    Args:
      num_heads: N.
      window: M, the largest window; a smaller one uses the middle of the table, the distances that it has.
      rngs: draws the table.
    """

    def __init__(self, num_heads, window, *, rngs):
        self.window = window
        self.relative_bias = normal(rngs, ((2 * window - 1) ** 2, num_heads))

    def __call__(self, window):
        return swin_bias.relative_position_bias(self.relative_bias[...], window, self.window)


class PositionNetwork(nnx.Module):
    """Version 2's bias [N, w^2, w^2]: a small network of the relative position (Liu et al. 2022, section 3.3).

        B = 16 sigmoid(W_2 relu(W_1 c + b))

    Args:
      num_heads: N.
      window: M, the window whose largest distance counts as 8 before the logarithm.
      rngs: draws the weights.
    """

    def __init__(self, num_heads, window, *, rngs):
        self.window = window
        self.position_into = normal(rngs, (2, POSITION_WIDTH))
        self.position_into_bias = zeros(POSITION_WIDTH)
        self.position_out = normal(rngs, (POSITION_WIDTH, num_heads))

    def __call__(self, window):
        places = swin_bias.log_spaced_coordinates(window, self.window)
        hidden = jax.nn.relu(places @ self.position_into[...] + self.position_into_bias[...])
        return swin_bias.relative_position_bias(16 * jax.nn.sigmoid(hidden @ self.position_out[...]), window)
