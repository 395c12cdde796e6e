"""The attention variants that a config may name: one table, and what each of them can do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np

from attention import (
    bigbird_attention,
    bigbird_pattern,
    bigbird_random_blocks,
    dot_product_attention,
    elu_plus_one,
    linear_attention,
    longformer_attention,
    sparse_transformer_attention,
)
from attention.masks import Causal, Global, Mask, Window
from attention.sparse_transformer import sparse_pattern

FEATURE_MAPS = {"elu_plus_one": elu_plus_one}


# One attend function per variant: (query, key, value, settings, **tail) -> output, always causal. The tail is what the
# layer wants honoured: query_segment_ids and key_segment_ids, and bias, dropout_rate and rng where the variant can.


def _attend_full(query, key, value, settings, **tail):
    return dot_product_attention(query, key, value, is_causal=True, **tail)


def _mask_full(settings, length, num_heads=1):
    return Causal()


def _attend_window(query, key, value, settings, **tail):
    return dot_product_attention(query, key, value, mask=Window(settings["window"], 0), **tail)


def _mask_window(settings, length, num_heads=1):
    return Window(settings["window"], 0)


def _attend_longformer(query, key, value, settings, **tail):
    prefix = _prefix(settings, query.shape[-3])
    window = settings["window"]
    return longformer_attention(query, key, value, window=window, global_positions=prefix, causal=True, **tail)


def _mask_longformer(settings, length, num_heads=1):
    window, prefix = Window(settings["window"], 0), _prefix(settings, length)
    return window if prefix is None else (window | Global(prefix)) & Causal()


def _prefix(settings, length):
    """Positions of the first num_global tokens, None for none."""
    return np.arange(min(settings["num_global"], length)) if settings["num_global"] else None


def _attend_sparse_transformer(query, key, value, settings, **tail):
    return sparse_transformer_attention(query, key, value, **_sparse(settings), **tail)


def _mask_sparse_transformer(settings, length, num_heads=1):
    return sparse_pattern(**_sparse(settings))


def _sparse(settings):
    """The settings as arguments: a config writes 0, the function wants None where there are no summary columns."""
    return {**settings, "summary": settings["summary"] or None, "causal": True}


def _attend_bigbird(query, key, value, settings, *, rng=None, **tail):
    blocks = _bigbird_blocks(settings, *query.shape[-3:-1])
    sizes = {name: settings[name] for name in ("block_size", "num_global_blocks")}
    return bigbird_attention(query, key, value, random_blocks=blocks, causal=True, dropout_rng=rng, **sizes, **tail)


def _mask_bigbird(settings, length, num_heads=1):
    blocks = _bigbird_blocks(settings, length, num_heads)
    sizes = {name: settings[name] for name in ("block_size", "num_global_blocks")}
    return bigbird_pattern(blocks, num_heads, length, causal=True, **sizes)


def _bigbird_blocks(settings, length, num_heads):
    """The random blocks of every head, a function of seed, length and heads: drawn anew at each trace, never stored."""
    sizes = {name: settings[name] for name in ("block_size", "num_random_blocks", "num_global_blocks")}
    with jax.ensure_compile_time_eval():  # the key must be concrete, also while a model is being traced
        return bigbird_random_blocks(jax.random.key(settings["seed"]), num_heads, length, causal=True, **sizes)


def _attend_linear(query, key, value, settings, **tail):
    feature_map = FEATURE_MAPS[settings["feature_map"]]
    return linear_attention(
        query, key, value, feature_map=feature_map, causal=True, chunk_size=settings["chunk_size"], **tail
    )


def _mask_linear(settings, length, num_heads=1):
    return None  # nothing is masked: a running sum over keys and values


def _check_nothing(settings):
    pass


def _check_sparse_transformer(settings):
    pattern, stride, summary = settings["pattern"], settings["stride"], settings["summary"]
    if pattern == "strided" and summary:
        raise ValueError(f"model.attention.summary: 'strided' has no summary columns, got {summary}; write 0")
    if pattern == "fixed" and not 1 <= summary <= stride:
        raise ValueError(f"model.attention.summary: wanted 1 to stride = {stride} for 'fixed', got {summary}")


@dataclass(frozen=True)
class Setting:
    """One number or word of a variant: a value that suits T = 512, and which others are allowed.

    Args:
      example: int or str; its type is the setting's type.
      minimum: smallest allowed number.
      maximum: largest allowed number; positions and seeds are 32-bit integers.
      choices: the allowed words.
    """

    example: int | str
    minimum: int = 0
    maximum: int = 2**31 - 1
    choices: tuple[str, ...] = ()

    def check(self, name, value):
        """Raises ValueError in one line unless `value` suits the setting called `name`."""
        if self.choices and value not in self.choices:
            raise ValueError(f"{name}: got {value!r}; write one of {', '.join(self.choices)}")
        if not self.choices and (type(value) is not int or not self.minimum <= value <= self.maximum):
            wanted = f"an integer from {self.minimum} to {self.maximum}"
            raise ValueError(f"{name}: wanted {wanted}, got {value!r}; write {self.example}")


@dataclass(frozen=True)
class Variant:
    """What a model needs to know about one kind of attention.

    Args:
      attend: (query, key, value, settings, **tail) -> output, causal.
      settings: name -> `Setting`; a config gives every one of them beside `name`.
      mask: (settings, length, num_heads=1) -> the pattern as an `attention.masks.Mask`, to draw or to compare with; it
        returns None where no pair is masked (linear attention sums).
      paper: author, year and arXiv id.
      cost: time as O(.), in the letters of the notation table and the names of the settings.
      check: (settings) -> None, raises ValueError for settings that do not fit one another.
      causal: can be used in a decoder.
      bias: takes a bias on the scores, hence the positions alibi and t5.
      attention_dropout: has weights to drop.
      packing: keeps the documents of `segment_ids` apart.
    """

    attend: Callable
    settings: Mapping[str, Setting]
    mask: Callable[..., Mask | None]
    paper: str
    cost: str
    check: Callable[[Mapping], None] = _check_nothing
    causal: bool = True
    bias: bool = True
    attention_dropout: bool = True
    packing: bool = True


VARIANTS = {
    "full": Variant(_attend_full, {}, _mask_full, "Vaswani et al. 2017, arXiv:1706.03762", "O(T^2)"),
    "window": Variant(
        _attend_window,
        # A query sees itself and the `window` keys before it.
        {"window": Setting(64)},
        _mask_window,
        "Beltagy et al. 2020, arXiv:2004.05150",
        "O(T window)",
    ),
    "longformer": Variant(
        _attend_longformer,
        # As window, and the first `num_global` tokens are seen by all. Their own rows share the ordinary projections,
        # where the paper trains a second set: the comparison keeps parameters equal.
        {"window": Setting(64), "num_global": Setting(8)},
        _mask_longformer,
        "Beltagy et al. 2020, arXiv:2004.05150",
        "O(T (window + num_global))",
    ),
    "sparse_transformer": Variant(
        _attend_sparse_transformer,
        # `summary` belongs to "fixed"; "strided" has no summary columns and wants summary=0.
        {
            "pattern": Setting("strided", choices=("strided", "fixed")),
            "stride": Setting(32, minimum=1),
            "summary": Setting(0),
        },
        _mask_sparse_transformer,
        "Child et al. 2019, arXiv:1904.10509",
        "O(T (stride + T / stride))",
        check=_check_sparse_transformer,
    ),
    "bigbird": Variant(
        _attend_bigbird,
        {
            "block_size": Setting(32, minimum=1),
            "num_random_blocks": Setting(2),
            "num_global_blocks": Setting(1),
            "seed": Setting(0),
        },
        _mask_bigbird,
        "Zaheer et al. 2020, arXiv:2007.14062",
        "O(T block_size (3 + num_random_blocks + num_global_blocks))",
    ),
    "linear": Variant(
        _attend_linear,
        {"chunk_size": Setting(128, minimum=1), "feature_map": Setting("elu_plus_one", choices=tuple(FEATURE_MAPS))},
        _mask_linear,
        "Katharopoulos et al. 2020, arXiv:2006.16236",
        "O(T (chunk_size + H) H)",
        bias=False,
        attention_dropout=False,
    ),
}


def check_attention(attention, *, position, attention_dropout, decoder=True):
    """Raises ValueError in one line if a model cannot be built with `attention = {name, ...settings}`.

    Args:
      attention: mapping; `name` is a key of `VARIANTS`, the rest are that variant's settings, all of them.
      position: the model's kind of positions; "alibi" and "t5" need scores to add to.
      attention_dropout: rate of dropout on the attention weights; more than 0 needs weights.
      decoder: whether the model must not look ahead.

    >>> check_attention({"name": "window"}, position="rope", attention_dropout=0.0)
    Traceback (most recent call last):
    ValueError: model.attention.window: missing for 'window'; write window=64
    """
    settings = dict(attention)
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in VARIANTS:
        raise ValueError(f"model.attention.name: unknown variant {name!r}; write one of {', '.join(VARIANTS)}")
    variant = VARIANTS[name]
    for extra in settings.keys() - variant.settings.keys():
        known = ", ".join(variant.settings) or "no settings"
        raise ValueError(f"model.attention.{extra}: {name!r} has no such setting; it takes {known}")
    for wanted, setting in variant.settings.items():
        if wanted not in settings:
            raise ValueError(f"model.attention.{wanted}: missing for {name!r}; write {wanted}={setting.example!r}")
        setting.check(f"model.attention.{wanted}", settings[wanted])
    variant.check(settings)
    if decoder and not variant.causal:
        raise ValueError(
            f"model.attention.name: {name!r} cannot be causal, so no decoder can use it; {_others('causal')}"
        )
    if position in ("alibi", "t5") and not variant.bias:
        raise ValueError(
            f"model.position: {name!r} has no scores for {position!r} to add to; write 'rope', or {_others('bias')}"
        )
    if attention_dropout and not variant.attention_dropout:
        raise ValueError(f"model.attention_dropout: {name!r} has no weights to drop; write 0.0 and use model.dropout")


def _others(capability):
    able = [name for name, variant in VARIANTS.items() if getattr(variant, capability)]
    return f"attention.name one of {', '.join(able)}"
