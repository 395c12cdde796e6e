"""Any attention function of this library as the `attention_fn` of Flax's own attention modules; imports no Flax."""

import functools
import inspect

import jax.numpy as jnp

from .masks import Dense, Mask


def flax_attention_fn(fn, *, query_as_key: bool = False, **settings):
    """Makes `fn` the `attention_fn` of `flax.nnx.MultiHeadAttention` or `flax.linen.MultiHeadDotProductAttention`.

    The module projects and calls; `fn` attends with `settings`, which hold everything of its own: `window`, `causal`,
    `key_mask`, `rng` of a pattern, and learned arrays by name (`projection`, `key_projection`, `log_decay`, ...). What
    the module passes on is honoured where `fn` can and refused where it cannot:

    * `mask`: a bool or 0/1 array. Functions with a mask of their own take any; the others take padding alone, as
      `[..., 1, 1, S]`, for their `key_mask`. On a grid, inputs `[B, *spatial, features]`, S is its last axis.
    * `bias`, `is_causal`: handed to `fn`; both sides may ask for `causal`, not one for it and the other against it.
    * dropout: needs `broadcast_dropout=False`, for here every head and batch entry draws its own.
    * `dtype`: query, key and value are cast to it first.
    * `precision`, the einsum hooks, and `sow_weights` (weights are never held as an array) are refused.

    Args:
      fn: a function of this library, one like it, or a `functools.partial` of it, whose keywords are settings too.
      query_as_key: for `lsh_attention`, whose queries are its keys: attend with the module's query alone. The module's
        key projection is then without use and receives no gradient.
      **settings: keyword arguments of every call of `fn`.

    Returns:
      A function of (query, key, value, ...) as Flax calls it.

    Raises:
      TypeError: `fn` has no such setting, or is a partial of more than settings.
      ValueError: query_as_key is wanted or is not; when called, settings that the module contradicts.
      NotImplementedError: when called, what the module asks for and `fn` cannot do.

    >>> import attention
    >>> attend = flax_attention_fn(attention.longformer_attention, window=2, causal=True)
    >>> x = jnp.ones((1, 8, 2, 4))
    >>> attend(x, x, x, dropout_rate=0.0).shape  # flax.nnx.MultiHeadAttention(..., attention_fn=attend)
    (1, 8, 2, 4)
    """
    fn, fixed = _unwrap(fn)
    settings = fixed | settings
    takes, name = inspect.signature(fn).parameters, _name(fn)
    for setting in settings:
        if setting not in takes or setting in ("query", "key", "value", "query_key"):
            raise TypeError(f"{setting}: {name} has no such setting; it has {', '.join(takes)}")
        if setting.startswith("return_"):
            raise TypeError(f"{setting}: a Flax module wants the output alone")
    shared = "query_key" in takes
    if shared != query_as_key:
        raise ValueError(
            f"query_as_key: {name} shares queries and keys; write query_as_key=True, and the module's key "
            "projection goes unused"
            if shared
            else f"query_as_key: {name} has keys of its own; write query_as_key=False"
        )

    # Linen reads this signature and leaves out what it does not name, so everything that Flax may pass is named.
    def attend(
        query,
        key,
        value,
        bias=None,
        mask=None,
        *,
        broadcast_dropout=True,
        dropout_rng=None,
        dropout_rate=0.0,
        deterministic=False,
        dtype=None,
        precision=None,
        module=None,
        is_causal=False,
        force_fp32_for_softmax=False,  # always so
        qk_attn_weights_einsum=None,
        attn_weights_value_einsum=None,
    ):
        refused = {"precision": precision, "sow_weights": module, "qk_attn_weights_einsum": qk_attn_weights_einsum,
                   "attn_weights_value_einsum": attn_weights_value_einsum}  # fmt: skip
        for argument, given in refused.items():
            if given is not None:
                raise NotImplementedError(f"{argument}: {name} cannot honour it; leave it at its default")
        given = dict(settings)
        if mask is not None:
            _add_mask(given, takes, name, jnp.asarray(mask))
        if bias is not None:
            _add(given, "bias", bias, takes, name)
        if is_causal:
            _add_causal(given, takes, name)
        if dropout_rate and not deterministic:
            if broadcast_dropout:
                raise NotImplementedError(
                    "broadcast_dropout: heads and batch entries draw their own dropout here; write "
                    "broadcast_dropout=False"
                )
            _add(given, "dropout_rate", dropout_rate, takes, name)
            _add(given, "dropout_rng" if "dropout_rng" in takes else "rng", dropout_rng, takes, name)
        dtype = dtype or jnp.result_type(query, key, value)
        query, key, value = (jnp.asarray(x, dtype) for x in (query, key, value))
        return fn(query, value, **given) if shared else fn(query, key, value, **given)

    return attend


def _unwrap(fn):
    """The function inside partials, and the keywords these fix."""
    fixed = {}
    while isinstance(fn, functools.partial):
        if fn.args:
            raise TypeError("fn: wanted a partial of keywords alone, got one of positions too; write them as settings")
        fn, fixed = fn.func, fn.keywords | fixed
    return fn, fixed


def _name(fn):
    return getattr(fn, "__name__", type(fn).__name__)


def _add(given, name, value, takes, fn_name):
    if name not in takes:
        raise NotImplementedError(f"{name}: {fn_name} cannot honour it")
    if name in given:
        raise ValueError(f"{name}: given both to flax_attention_fn and by the module; give it once")
    given[name] = value


def _add_causal(given, takes, fn_name):
    argument = next((name for name in ("causal", "is_causal") if name in takes), None)
    if argument is None:
        if "initial_state" not in takes:  # a state and no choice: causal at any rate
            raise NotImplementedError(f"is_causal: {fn_name} has no causal form")
    elif not given.setdefault(argument, True):
        raise ValueError(f"is_causal: the module says True, flax_attention_fn was given {argument}=False; drop either")


def _add_mask(given, takes, fn_name, mask):
    """Joins Flax's mask [..., N or 1, T or 1, S] to the masks among the settings."""
    mask = mask if mask.dtype == bool else mask > 0
    if "mask" in takes:
        own = given.get("mask")
        own = own if own is None or isinstance(own, Mask) else Dense(own)
        given["mask"] = mask if own is None else own & Dense(mask)
        return
    if mask.shape[-3:-1] != (1, 1) or "key_mask" not in takes:
        raise NotImplementedError(
            f"mask: {fn_name} takes padding alone, as [..., 1, 1, S], got {list(mask.shape)}; write causal=True as a "
            "setting for order, or use dot_product_attention"
        )
    mask, own = mask[..., 0, 0, :], given.get("key_mask")
    given["key_mask"] = mask if own is None else mask & jnp.asarray(own)
