"""Rotary position embedding (RoPE) and the rescalings that stretch it to longer contexts."""

import math

import jax.numpy as jnp
import numpy as np

from .checks import accumulation_dtype
from .tile import plain_promotion


@plain_promotion
def apply_rotary(x, positions, *, base=10000.0, interleaved=False, frequencies=None, attention_factor=1.0):
    """Turns pairs of features by angles proportional to the position, so that scores see only distances.

        y_i = x_i cos(p f_i) - x_j sin(p f_i)        f_i = base^(-2i / R),  i = 0 .. R/2 - 1
        y_j = x_j cos(p f_i) + x_i sin(p f_i)        j = i + R/2, or (2i, 2i + 1) for (i, j) when `interleaved`

    Su et al. 2021, "RoFormer", arXiv:2104.09864, eq. 34; the paper's m, theta_i, d are our p, f_i, R. Rotate queries
    and keys, never values: then `query . key` depends on the positions only through their difference.
    The two layouts differ by a fixed permutation of the features. Scores agree as long as queries and keys use the same
    one, but weights trained with one are useless in the other: half-split is Llama, GPT-NeoX and most of Hugging Face,
    interleaved is the paper, GPT-J and Meta's own Llama files.

    Time and memory O(T N H). Angles are float32 (float64 for float64 `x`), so an angle is off by up to p f_i 2^-24
    radians: for p = 10^6, 0.06 in the fastest pair.

    Args:
      x: [..., T, N, H], queries or keys.
      positions: [..., T] integers (or fractions of a position), broadcastable to the leading dimensions of `x`.
      base: the longest wavelength is near 2 pi base tokens. 10000 is the paper's.
      interleaved: pair neighbouring features instead of the two halves.
      frequencies: [R/2] radians per token, from `rotary_frequencies`; None means all of H at `base`. The first
        R <= H features turn, the others pass through unchanged (partial rotary).
      attention_factor: multiplies cos and sin, the second value of `rotary_frequencies`. Given to both sides it scales
        the rotated part of the scores by its square.

    Returns:
      [..., T, N, H] in the dtype of `x`.

    Raises:
      ValueError: a shape or dtype does not fit, or both `base` and `frequencies` are given.

    Example:
      >>> import jax.numpy as jnp
      >>> query, key = jnp.ones([7, 1, 4]), jnp.ones([7, 1, 4])
      >>> def score(shift):
      ...     positions = jnp.arange(7) + shift
      ...     return jnp.vdot(apply_rotary(query, positions)[5], apply_rotary(key, positions)[2])
      >>> bool(jnp.allclose(score(0), score(100), atol=1e-4))
      True
    """
    _check_rotary(x, positions, base, frequencies)
    if frequencies is None:
        frequencies, _ = rotary_frequencies(x.shape[-1], base=base)
    dtype = accumulation_dtype(x.dtype)
    angles = jnp.asarray(positions, dtype)[..., None, None] * jnp.asarray(frequencies, dtype)  # [..., T, 1, R/2]
    cos, sin = jnp.cos(angles) * attention_factor, jnp.sin(angles) * attention_factor

    rotated, rest = jnp.split(x, [2 * angles.shape[-1]], axis=-1)
    pairs = rotated.reshape(*x.shape[:-1], -1, 2) if interleaved else rotated.reshape(*x.shape[:-1], 2, -1)
    axis = -1 if interleaved else -2
    first, second = jnp.moveaxis(pairs.astype(dtype), axis, 0)
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=axis)
    return jnp.concatenate([turned.reshape(rotated.shape).astype(x.dtype), rest], axis=-1)


def rotary_frequencies(head_dim, *, base=10000.0, scaling=None, length=None):
    """Radians per token of every rotated pair, and the factor on cos and sin, after a context extension.

    Plain RoPE has f_i = base^(-2i / R). A model trained on L0 tokens meets unseen angles beyond them; each `rope_type`
    avoids that in its own way, with s = `factor`:

    * `default`: no change.
    * `linear`: f_i / s. Chen et al. 2023, "Positional Interpolation", arXiv:2306.15595, eq. 4. Needs `factor`.
    * `dynamic`: the base grows with the length, base (s L / L0 - s + 1)^(R / (R - 2)) for L > L0, so the fastest pair
      stays and the slowest is stretched in full; nothing changes up to L0. "Dynamic NTK", described in Peng et al.
      2023, arXiv:2309.00071, section 3.3. Needs `factor`, `original_max_position_embeddings` (L0) and `length` (L).
    * `yarn`: pairs that turn more than `beta_fast` (32) times in L0 tokens keep f_i, those below `beta_slow` (1) get
      f_i / s, a linear ramp over i lies between; cos and sin are multiplied by 0.1 ln s + 1. Peng et al. 2023, "YaRN",
      arXiv:2309.00071, eqs. 17-22. Needs `factor` and `original_max_position_embeddings`; takes `beta_fast`,
      `beta_slow`, `attention_factor`, `mscale` with `mscale_all_dim`, and `truncate` (round the ramp's ends outwards).
    * `llama3`: wavelengths above L0 / `low_freq_factor` get f_i / s, those below L0 / `high_freq_factor` keep f_i, a
      blend linear in the frequency lies between. Grattafiori et al. 2024, "The Llama 3 Herd of Models",
      arXiv:2407.21783; formula from Meta's code. Needs all of `factor`, `low_freq_factor`, `high_freq_factor` and
      `original_max_position_embeddings`.

    Time and memory O(H).

    Args:
      head_dim: H, the width of a head.
      base: as in `apply_rotary`.
      scaling: None, or a mapping with the keys of a Hugging Face config (`rope_scaling` or `rope_parameters`):
        `rope_type` (or its old name `type`) and the keys named above. `rope_theta` is the base and replaces the default
        `base`; `partial_rotary_factor` leaves the first R = int(H * partial_rotary_factor) features to rotate. Where
        Hugging Face reads L0 from the model's `max_position_embeddings` (`dynamic`), put that number under
        `original_max_position_embeddings`. A key that the type does not use is refused.
      length: largest position + 1, int or a traced scalar; for `dynamic` only. Rotate cached keys again when it grows.

    Returns:
      (frequencies [R/2], attention_factor): float32 (float64 under x64), and a Python float.

    Raises:
      ValueError: a key is unknown, missing or out of range, `base` contradicts `rope_theta`, `length` is missing for
        `dynamic` or given to another type, or R is not a positive even number.

    Example:
      >>> frequencies, attention_factor = rotary_frequencies(
      ...     8, scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32})
      >>> [round(float(f), 6) for f in frequencies]
      [1.0, 0.025, 0.0025, 0.00025]
      >>> round(attention_factor, 4)
      1.1386
    """
    scaling = {key: value for key, value in (scaling or {}).items() if value is not None}  # null = not set
    rope_type = _pop_type(scaling)
    base = _pop_base(scaling, base)
    rotary_dim = _pop_rotary_dim(scaling, head_dim)
    required, optional, rescale = SCALINGS[rope_type]
    _check_keys(rope_type, scaling, required, optional)
    if (length is None) == (rope_type == "dynamic"):
        wanted = "the largest position + 1" if length is None else "None: only rope_type 'dynamic' depends on it"
        raise ValueError(f"length: rope_type {rope_type!r} wants {wanted}, got {length}")
    if length is not None:
        scaling["length"] = length
    frequencies = base ** (-np.arange(0, rotary_dim, 2) / rotary_dim)
    frequencies, attention_factor = rescale(frequencies, base, **scaling)
    return jnp.asarray(frequencies), attention_factor


def _default(frequencies, base):
    return frequencies, 1.0


def _linear(frequencies, base, *, factor):
    return frequencies / factor, 1.0


def _dynamic(frequencies, base, *, factor, original_max_position_embeddings, length):
    # The new base raised to -2i / R is the old one times stretch^(-2i / (R - 2)), which keeps a traced length out of
    # the large powers and their rounding.
    stretch = jnp.maximum(factor * length / original_max_position_embeddings - (factor - 1), 1.0)
    pairs = len(frequencies)
    return frequencies * stretch ** (-np.arange(pairs) / max(pairs - 1, 1)), 1.0


def _yarn(
    frequencies,
    base,
    *,
    factor,
    original_max_position_embeddings,
    beta_fast=32.0,
    beta_slow=1.0,
    attention_factor=None,
    mscale=None,
    mscale_all_dim=None,
    truncate=True,
):
    pairs = len(frequencies)

    def pair_with(turns):  # the (fractional) index i whose pair turns that often in the original context
        return pairs * math.log(original_max_position_embeddings / (turns * 2 * math.pi)) / math.log(base)

    low, high = pair_with(beta_fast), pair_with(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)  # 2 pairs - 1: as in the authors' code, which clips by features
    ramp = np.clip((np.arange(pairs) - low) / (high - low or 1e-3), 0, 1)  # 0 keeps, 1 interpolates

    def magnitude(weight):
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if attention_factor is None:
        both = mscale and mscale_all_dim
        attention_factor = magnitude(mscale) / magnitude(mscale_all_dim) if both else magnitude(1.0)
    return frequencies * (1 - ramp) + frequencies / factor * ramp, float(attention_factor)


def _llama3(frequencies, base, *, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings):
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)
    keep = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return frequencies * keep + frequencies / factor * (1 - keep), 1.0


SCALINGS = {  # rope_type -> required keys, optional keys, rescaling
    "default": ((), (), _default),
    "linear": (("factor",), (), _linear),
    "dynamic": (("factor", "original_max_position_embeddings"), (), _dynamic),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
        _yarn,
    ),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        (),
        _llama3,
    ),
}
MINIMA = {
    "factor": 1,
    "original_max_position_embeddings": 1,
    "low_freq_factor": 0,
    "beta_slow": 0,
    "attention_factor": 0,
}


def _pop_type(scaling):
    names = [scaling.pop(key) for key in ("rope_type", "type") if key in scaling]
    rope_type = names[0] if names else "default"
    if rope_type not in SCALINGS or len(set(names)) > 1:
        got = " and ".join(map(repr, names))
        raise ValueError(f"scaling['rope_type']: wanted one of {', '.join(SCALINGS)}, got {got}")
    if not names and scaling.keys() - {"rope_theta", "partial_rotary_factor"}:
        raise ValueError(f"scaling: wanted a 'rope_type' ({', '.join(SCALINGS)}), got only {sorted(scaling)}")
    return rope_type


def _pop_base(scaling, base):
    theta = scaling.pop("rope_theta", base)
    if base not in (10000.0, theta):
        raise ValueError(f"base: got {base} beside scaling['rope_theta'] = {theta}; give one of them")
    if not theta > 1:
        raise ValueError(f"base: wanted a number > 1, got {theta}")
    return float(theta)


def _pop_rotary_dim(scaling, head_dim):
    factor = scaling.pop("partial_rotary_factor", 1.0)
    rotary_dim = int(head_dim * factor)
    if rotary_dim < 2 or rotary_dim % 2 or rotary_dim > head_dim:
        raise ValueError(
            f"head_dim: wanted an even number of rotated features from 2 to head_dim, got {rotary_dim} "
            f"from head_dim {head_dim} and partial_rotary_factor {factor}"
        )
    return rotary_dim


def _check_keys(rope_type, scaling, required, optional):
    missing = [key for key in required if key not in scaling]
    unknown = sorted(scaling.keys() - {*required, *optional})
    if missing or unknown:
        raise ValueError(
            f"scaling: rope_type {rope_type!r} takes {', '.join((*required, *optional)) or 'no further keys'}; "
            f"missing {missing}, unknown {unknown}"
        )
    for key, least in MINIMA.items():
        if key in scaling and not scaling[key] >= least:
            raise ValueError(f"scaling[{key!r}]: wanted a number >= {least}, got {scaling[key]!r}")
    values = {"beta_fast": 32.0, "beta_slow": 1.0, **scaling}
    for high, low in (("high_freq_factor", "low_freq_factor"), ("beta_fast", "beta_slow")):
        if high in values and not values[high] > values[low]:
            raise ValueError(f"scaling[{high!r}]: wanted more than {low} = {values[low]}, got {values[high]!r}")
    mscales = [key for key in ("mscale", "mscale_all_dim") if key in scaling]
    if len(mscales) == 1 or (mscales and "attention_factor" in scaling):
        raise ValueError(
            f"scaling[{mscales[0]!r}]: wanted mscale and mscale_all_dim together, or attention_factor alone"
        )


def _check_rotary(x, positions, base, frequencies):
    if x.ndim < 3 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: wanted a float array [..., T, N, H], got {x.dtype}{list(x.shape)}")
    if not jnp.issubdtype(jnp.result_type(positions), jnp.number) or not _broadcasts(
        jnp.shape(positions), x.shape[:-2]
    ):
        raise ValueError(
            f"positions: wanted numbers broadcastable to {list(x.shape[:-2])}, the [..., T] of x, got "
            f"{jnp.result_type(positions)}{list(jnp.shape(positions))}"
        )
    if frequencies is None:
        return
    if jnp.ndim(frequencies) != 1 or 2 * jnp.size(frequencies) > x.shape[-1]:
        raise ValueError(
            f"frequencies: wanted [R/2] with R at most the {x.shape[-1]} features of x, "
            f"got {list(jnp.shape(frequencies))}"
        )
    if base != 10000.0:
        raise ValueError(f"base: got {base} beside frequencies, which fix it; write rotary_frequencies(R, base={base})")


def _broadcasts(shape, target):
    """Whether an array of `shape` stretches to `target`, which itself stays as it is."""
    return len(shape) <= len(target) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False)
    )
