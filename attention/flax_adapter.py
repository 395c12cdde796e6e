"""Any attention function of this library as the `attention_fn` of Flax's own attention modules; imports no Flax."""

import inspect

import jax.numpy as jnp

from .capabilities import CAPABILITIES
from .masks import Dense, Mask


def flax_attention_fn(fn, *, query_as_key: bool = False, **settings):
    """Makes `fn` the `attention_fn` of `flax.nnx.MultiHeadAttention` or `flax.linen.MultiHeadDotProductAttention`.

    The module projects and calls; `fn` attends with `settings`, which hold everything of its own: `window`, `causal`,
    `key_mask`, `rng` of a pattern, and learned arrays by name (`projection`, `key_projection`, `log_decay`, ...). What
    the module passes on is honoured where `fn` can and refused where it cannot:

    * `mask`: a bool or 0/1 array. Functions with a mask of their own take any; the others take padding alone, as
      `[..., 1, 1, S]`, for their `key_mask`.
    * `bias`, `is_causal`: handed to `fn`; both sides may ask for `causal`.
    * dropout: needs `broadcast_dropout=False`, for here every head and batch entry draws its own.
    * `dtype`: query, key and value are cast to it first.
    * `precision`, the einsum hooks, and `sow_weights` (weights are never held as an array) are refused.

    Args:
      fn: a function of this library, or one like it.
      query_as_key: for `lsh_attention`, whose queries are its keys: attend with the module's query alone. The module's
        key projection is then without use and receives no gradient.
      **settings: keyword arguments of every call of `fn`.

    Returns:
      A function of (query, key, value, ...) as Flax calls it.

    Raises:
      TypeError: `fn` has no such setting.
      ValueError: query_as_key is wanted or is not.
      NotImplementedError: when called, what the module asks for and `fn` cannot do.

    >>> import attention
    >>> attend = flax_attention_fn(attention.longformer_attention, window=2, causal=True)
    >>> x = jnp.ones((1, 8, 2, 4))
    >>> attend(x, x, x, dropout_rate=0.0).shape  # flax.nnx.MultiHeadAttention(..., attention_fn=attend)
    (1, 8, 2, 4)
    """
    takes = inspect.signature(fn).parameters
    for name in settings:
        if name not in takes or name in ("query", "key", "value", "query_key"):
            raise TypeError(f"{name}: {fn.__name__} has no such setting; it has {', '.join(takes)}")
        if name.startswith("return_"):
            raise TypeError(f"{name}: a Flax module wants the output alone")
    shared = "query_key" in takes
    if shared != query_as_key:
        raise ValueError(
            f"query_as_key: {fn.__name__} shares queries and keys; write query_as_key=True, and the module's key "
            "projection goes unused"
            if shared
            else f"query_as_key: {fn.__name__} has keys of its own; write query_as_key=False"
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
        for name, given in refused.items():
            if given is not None:
                raise NotImplementedError(f"{name}: {fn.__name__} cannot honour it; leave it at its default")
        given = dict(settings)
        if mask is not None:
            _add_mask(given, takes, fn.__name__, jnp.asarray(mask))
        if bias is not None:
            _add(given, "bias", bias, takes, fn.__name__)
        if is_causal and not takes.keys().isdisjoint(("causal", "is_causal")):
            given["causal" if "causal" in takes else "is_causal"] = True
        elif is_causal and not _always_causal(fn):
            raise NotImplementedError(f"is_causal: {fn.__name__} has no causal form")
        if dropout_rate and not deterministic:
            if broadcast_dropout:
                raise NotImplementedError(
                    "broadcast_dropout: heads and batch entries draw their own dropout here; write "
                    "broadcast_dropout=False"
                )
            _add(given, "dropout_rate", dropout_rate, takes, fn.__name__)
            _add(given, "dropout_rng" if "dropout_rng" in takes else "rng", dropout_rng, takes, fn.__name__)
        dtype = dtype or jnp.result_type(query, key, value)
        query, key, value = (jnp.asarray(x, dtype) for x in (query, key, value))
        return fn(query, value, **given) if shared else fn(query, key, value, **given)

    return attend


def _add(given, name, value, takes, fn_name):
    if name not in takes:
        raise NotImplementedError(f"{name}: {fn_name} cannot honour it")
    if name in given:
        raise ValueError(f"{name}: given both to flax_attention_fn and by the module; give it once")
    given[name] = value


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


def _always_causal(fn):
    return fn.__name__ in CAPABILITIES and not CAPABILITIES[fn.__name__].bidirectional
