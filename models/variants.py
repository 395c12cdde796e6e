"""The attention variants that a config may name: one row each, and what each of them can do in a model."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attention.capabilities import CAPABILITIES, Capability
from models import attend

# What a layer uses attention for -> the capability it wants, and what to say of a variant without it.
USES = {
    "decoder": ("causal", "cannot be causal, so no decoder can use it"),
    "encoder": ("bidirectional", "never looks ahead, so no encoder can use it"),
    "cross": ("cross", "attends within one sequence, so no cross-attention can use it"),
}


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


def check_settings(field, name, given, settings):
    """Raises ValueError in one line unless `given` are all the settings of what is called `name`, and suit them.

    Args:
      field: of the config, for the message, such as "model.attention".
      name: of the variant.
      given: {setting: value}.
      settings: {setting: `Setting`}.
    """
    for extra in given.keys() - settings.keys():
        known = ", ".join(settings) or "no settings"
        raise ValueError(f"{field}.{extra}: {name!r} has no such setting; it takes {known}")
    for wanted, setting in settings.items():
        if wanted not in given:
            raise ValueError(f"{field}.{wanted}: missing for {name!r}; write {wanted}={setting.example!r}")
        setting.check(f"{field}.{wanted}", given[wanted])


def _nothing(*args, **kwargs):
    return ()


@dataclass(frozen=True)
class Variant:
    """What a model needs to know about one kind of attention.

    Args:
      attend: (query, key, value, *arrays, settings, causal, **tail) -> output; see `models.attend`.
      can: its row of `attention.capabilities`, which decides where a config may name it.
      settings: name -> `Setting`; a config gives every one of them beside `name`.
      mask: (settings, length, num_heads=1, *, causal=True) -> the pattern as an `attention.masks.Mask`, or None where
        no fixed pairs are masked.
      check: (field, settings, *, position, num_heads) -> None, raises ValueError for settings that do not fit one
        another or the model.
      learned: (settings, sizes) -> {name: (shape, standard deviation)} of the parameters the layer owns for it;
        `sizes` is a `models.layers.Sizes`.
      one_for_all: (settings) -> True where one set of `learned` serves all layers, so that the model owns it.
      arrays: (settings, sizes, learned, x, rotate, rng) -> the arrays that follow query, key and value; `x [B, T,
        width]` is the layer's input, `rotate` what turns queries and keys or None, `rng` the training step's key, None
        in evaluation.
      values: which of `arrays`, if there are any, are values, too: what is attended to, `[B, S, K, Hv]`.
      ring: (settings) -> {window, pinned} of the `KeyValueCache` it decodes from; empty where that keeps every token.
        Raises NotImplementedError for settings that cannot decode.
      shape: (query, key) -> the same, before they rotate.
      projected: (settings) -> which of query, key and value the layer projects; a key that is none of them is the
        query, a value that is none is the key.
      normalized: each head of the output is divided by its root mean square, in place of the normaliser it lacks.
      grid: the tokens stand on a grid of rows x columns, and `attend` takes it as `grid`; for models of images.
      graph: the tokens are the nodes of a graph, and `attend` takes its `models.edges.Edges` as `edges`.
    """

    attend: Callable
    can: Capability
    settings: Mapping[str, Setting] = dataclasses.field(default_factory=dict)
    mask: Callable = attend.no_mask
    check: Callable = _nothing
    learned: Callable = lambda settings, sizes: {}
    one_for_all: Callable = lambda settings: False
    arrays: Callable = _nothing
    values: tuple[int, ...] = ()
    ring: Callable = lambda settings: {}
    shape: Callable = lambda query, key: (query, key)
    projected: Callable = lambda settings: ("query", "key", "value")
    normalized: bool = False
    grid: bool = False
    graph: bool = False

    @property
    def recurrent(self):
        """Whether it decodes from a state of its own, `initial_state`, in place of a cache of keys and values."""
        return self.can.decoding == "state"


def _check_longformer(field, settings, **model):
    if settings["global_projections"] and not settings["num_global"]:
        raise ValueError(f"{field}.global_projections: got 1 without a global token to use them; write 0")
    if settings["window"] * settings["dilation"] >= 2**31:
        raise ValueError(f"{field}.dilation: wanted window * dilation below 2**31, got {settings['dilation']}; write 1")


def _check_sparse_transformer(field, settings, *, position, num_heads):
    pattern, stride, summary = settings["pattern"], settings["stride"], settings["summary"]
    for name in ("summary", "summary_per_head"):
        if pattern == "strided" and settings[name]:
            raise ValueError(f"{field}.{name}: 'strided' has no summary columns, got {settings[name]}; write 0")
    if pattern == "fixed" and not 1 <= summary <= stride:
        raise ValueError(f"{field}.summary: wanted 1 to stride = {stride} for 'fixed', got {summary}")
    if settings["heads"] == "split" and num_heads < 2:
        raise ValueError(f"{field}.heads: 'split' wants a head for each factor, got num_heads = 1; write 'merged'")
    if settings["summary_per_head"] and position in ("alibi", "t5"):
        raise ValueError(f"{field}.summary_per_head: cannot follow the bias of position={position!r}; write 0, or rope")


def _check_lsh(field, settings, **model):
    if settings["num_buckets"] % 2:
        raise ValueError(
            f"{field}.num_buckets: wanted an even number, got {settings['num_buckets']}; write 0 to have it chosen"
        )


def _check_axial(field, settings, *, num_heads, **model):
    if num_heads % 2:
        raise ValueError(f"{field}.name: 'axial' gives half of the heads to each axis, got num_heads = {num_heads}")


def _check_graph(field, settings, *, position, **model):
    if settings["score"] == "gatv2" and position == "rope":
        raise ValueError(
            f"{field}.score: 'gatv2' adds query and key, where rope's turns would not tell distances; write "
            "'dot_product', or model.position='learned'"
        )


# The edges are what a token sees, so that one that looks ahead is left out in a decoder, one into padding or another
# document everywhere.
GRAPH = Capability(
    sees="the tokens that an edge of the graph comes from",
    softmax="exact",
    time="O(T + E)",
    memory="O(T + E)",
    paper="Velickovic et al. 2018; Shaw et al. 2018",
    arxiv="1710.10903",
    bias=False,
    decoding="",
    learned='`relations`, for "gatv2" `vector`',
)
CHUNK_SIZE = Setting(64, minimum=1)  # tokens compared pair by pair before they fold into the state
VARIANTS = {
    "full": Variant(attend.full, CAPABILITIES["dot_product_attention"], mask=attend.mask_full),
    "window": Variant(
        attend.window,
        dataclasses.replace(CAPABILITIES["dot_product_attention"], cross=False),
        # A query sees itself, the `window` keys before it and in an encoder as many after it.
        {"window": Setting(64)},
        attend.mask_window,
        ring=lambda settings: {"window": settings["window"]},
    ),
    "local": Variant(
        attend.local,
        CAPABILITIES["local_attention"],
        # Blocks of `window` tokens; a query sees its own, the `neighbours` before it, in an encoder as many after it.
        {"window": Setting(64, minimum=1), "neighbours": Setting(1)},
        attend.mask_local,
        ring=lambda settings: {"window": settings["window"] * (settings["neighbours"] + 1) - 1},
    ),
    "longformer": Variant(
        attend.longformer,
        CAPABILITIES["longformer_attention"],
        # As window, every `dilation`-th key of it, and the first `num_global` tokens are seen by all, in an encoder see
        # all (CLS is the first). global_projections=1: their own rows have a second set of projections, as the paper
        # trains them; with 0 they share the ordinary ones, and variants have equally many parameters.
        {
            "window": Setting(64),
            "dilation": Setting(1, minimum=1),
            "num_global": Setting(8),
            "global_projections": Setting(0, maximum=1),
        },
        attend.mask_longformer,
        _check_longformer,
        learned=attend.globals_learned,
        arrays=attend.global_projections,
        values=(2,),
        ring=attend.longformer_ring,
    ),
    "sparse_transformer": Variant(
        attend.sparse_transformer,
        CAPABILITIES["sparse_transformer_attention"],
        # heads: "merged" = one softmax over both factors, "split" = half of the heads for each. `summary` and
        # `summary_per_head`, heads with summary columns of their own, belong to "fixed"; "strided" wants 0 for both.
        {
            "pattern": Setting("strided", choices=("strided", "fixed")),
            "stride": Setting(32, minimum=1),
            "summary": Setting(0),
            "heads": Setting("merged", choices=("merged", "split")),
            "summary_per_head": Setting(0, maximum=1),
        },
        attend.mask_sparse_transformer,
        _check_sparse_transformer,
    ),
    "bigbird": Variant(
        attend.bigbird,
        CAPABILITIES["bigbird_attention"],
        {
            "block_size": Setting(32, minimum=1),
            "num_random_blocks": Setting(2),
            "num_global_blocks": Setting(1),
            "seed": Setting(0),
        },
        attend.mask_bigbird,
    ),
    "lsh": Variant(
        attend.lsh,
        CAPABILITIES["lsh_attention"],
        # Training hashes anew at every step and layer, evaluation by `seed`. num_buckets=0: two for each chunk. A chunk
        # looks at the one before, in an encoder also at the one after. correct_duplicates=1: a pair that meets in
        # several rounds counts once (the paper's N_ij); with 0 as often as it meets, as in the authors' code.
        {
            "num_hashes": Setting(2, minimum=1),
            "bucket_size": Setting(32, minimum=1),
            "num_buckets": Setting(0),
            "correct_duplicates": Setting(0, maximum=1),
            "seed": Setting(0),
        },
        check=_check_lsh,
        arrays=attend.hash_key,
        projected=lambda settings: ("query", "value"),
    ),
    "linear": Variant(
        attend.linear,
        CAPABILITIES["linear_attention"],
        {"chunk_size": CHUNK_SIZE, "feature_map": Setting("elu_plus_one", choices=tuple(attend.FEATURE_MAPS))},
    ),
    "efficient": Variant(attend.efficient, CAPABILITIES["efficient_attention"]),
    "performer": Variant(
        attend.performer,
        CAPABILITIES["performer_attention"],
        # redraw=1: new features at every training step and layer; the paper redraws them periodically during training
        # and gives no period. redraw=0, and evaluation: those of `seed`.
        {
            "num_features": Setting(64, minimum=1),
            "kernel": Setting("softmax", choices=("softmax", "relu")),
            "redraw": Setting(0, maximum=1),
            "seed": Setting(0),
        },
        arrays=attend.random_features,
    ),
    "retention": Variant(attend.retain, CAPABILITIES["retention"], {"chunk_size": CHUNK_SIZE}, normalized=True),
    "gated_linear": Variant(
        attend.gated_linear,
        CAPABILITIES["gated_linear_attention"],
        {"chunk_size": CHUNK_SIZE},
        learned=attend.decay_learned,
        arrays=attend.decays,
        normalized=True,
    ),
    "delta_rule": Variant(
        attend.delta_rule,
        CAPABILITIES["delta_rule_attention"],
        {"chunk_size": CHUNK_SIZE},
        learned=attend.beta_learned,
        arrays=attend.betas,
        shape=attend.unit_length,
        normalized=True,
    ),
    "linformer": Variant(
        attend.linformer,
        CAPABILITIES["linformer_attention"],
        # `sharing` as the paper names it: none = every head its own E and F; headwise = one E and one F a layer;
        # key_value = E is F; layerwise = one E for all layers. None of them goes beyond the training length.
        {
            "rank": Setting(64, minimum=1),
            "sharing": Setting("headwise", choices=("none", "headwise", "key_value", "layerwise")),
        },
        learned=attend.linformer_learned,
        one_for_all=lambda settings: settings["sharing"] == "layerwise",
        arrays=attend.linformer_arrays,
    ),
    # Half of the heads attend along the rows of the grid, half along its columns.
    "axial": Variant(
        attend.axial,
        dataclasses.replace(CAPABILITIES["axial_attention"], causal=False),
        check=_check_axial,
        grid=True,
    ),
    # Windows of `window` x `window` tokens that do not overlap.
    "grid_window": Variant(
        attend.grid_window,
        dataclasses.replace(CAPABILITIES["shifted_window_attention"], bias=False),  # here without Swin's table
        {"window": Setting(7, minimum=1)},
        grid=True,
    ),
    # Tokens attend along the edges of a graph and nowhere else, each edge with the vector of its relation. score:
    # "dot_product", or "gatv2", which has one projection for what a sender is scored by and what it sends.
    "graph": Variant(
        attend.graph,
        GRAPH,
        {"score": Setting("dot_product", choices=("dot_product", "gatv2"))},
        check=_check_graph,
        learned=attend.graph_learned,
        arrays=attend.graph_arrays,
        projected=attend.graph_projected,
        graph=True,
    ),
}


def check_attention(
    attention,
    *,
    position,
    attention_dropout,
    num_heads,
    use="decoder",
    field="attention",
    grid=False,
    graph=False,
):
    """Raises ValueError in one line if a model cannot be built with `attention = {name, ...settings}`.

    Args:
      attention: mapping; `name` is a key of `VARIANTS`, the rest are that variant's settings, all of them.
      position: the model's kind of positions; "alibi" and "t5" need scores to add to, where the field has positions.
      attention_dropout: rate of dropout on the attention weights; more than 0 needs weights.
      num_heads: the model's number of query heads.
      use: one of USES.
      field: the config's field that holds `attention`, for the message.
      grid: whether the model's tokens stand on a grid.
      graph: whether they are nodes of a graph.

    >>> check_attention({"name": "window"}, position="rope", attention_dropout=0.0, num_heads=4)
    Traceback (most recent call last):
    ValueError: model.attention.window: missing for 'window'; write window=64
    """
    settings, field = dict(attention), f"model.{field}"
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in VARIANTS:
        raise ValueError(f"{field}.name: unknown variant {name!r}; write one of {', '.join(VARIANTS)}")
    variant = VARIANTS[name]
    check_settings(field, name, settings, variant.settings)
    variant.check(field, settings, position=position, num_heads=num_heads)
    wanted, lack = USES[use]
    if variant.grid and not grid:
        raise ValueError(f"{field}.name: {name!r} wants a grid of patches, as images have; write {_others(wanted)}")
    if variant.graph and not graph:
        raise ValueError(f"{field}.name: {name!r} wants a graph of tokens, and here is none; write {_others(wanted)}")
    if not getattr(variant.can, wanted):
        raise ValueError(f"{field}.name: {name!r} {lack}; write {_others(wanted, grid, graph)}")
    if position in ("alibi", "t5") and use != "cross" and not variant.can.bias:
        raise ValueError(
            f"model.position: {name!r} has no scores for {position!r} to add to; write rope, or {field}.name "
            f"{_others('bias')}"
        )
    if attention_dropout and not variant.can.dropout:
        raise ValueError(f"model.attention_dropout: {name!r} has no weights to drop; write 0.0 and use model.dropout")


def _others(capability, grid=False, graph=False):
    fit = {name: variant for name, variant in VARIANTS.items() if grid >= variant.grid and graph >= variant.graph}
    return f"one of {', '.join(name for name, variant in fit.items() if getattr(variant.can, capability))}"
