"""ViT: every variant, positions, special tokens, resolutions, what it shows of itself, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ATTENTION, IMAGE, can
from flax import nnx
from harness import EPS, assert_everything_learns, assert_trees_agree, build, value_and_gradient

from attention import dot_product_attention
from experiment.optimizers import is_matrix
from models.config import check
from models.layers import Attention, Grid, variant_of
from models.variants import VARIANTS
from models.vision_config import preset
from models.vit import ViT, resized

B, ROWS, COLUMNS, SIDE = 2, 3, 5, 10  # an image of 3 x 5 patches; trained on 5 x 5
T = ROWS * COLUMNS
ON_GRID = [case for case in ATTENTION if VARIANTS[ATTENTION[case]["name"]].grid]
OFTEN = ["full", "linear", *ON_GRID]  # the default suite: exact, without weights, on the grid; others take as long


def tiny(**changes):
    """A config of patches of 2 x 2 pixels, with two special tokens unless its attention has no place for them."""
    on_grid = changes.get("attention", {}).get("name") in ON_GRID
    fields = {"channels": 3, "num_classes": 7, "pool": "mean" if on_grid else "cls", "registers": 0 if on_grid else 1}
    fields |= {"width": 16, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_width": 11, "patch_size": 2}
    return preset("vit", "tiny", **fields | changes)


@pytest.fixture
def images():
    return jax.random.normal(jax.random.key(0), (B, 2 * ROWS, 2 * COLUMNS, 3))


def embedded(model, images):
    """What the first layer reads, [B, tokens, width], and where each token stands."""
    x, grid = model._embed(images, None)
    return x, model._places(grid)


@pytest.mark.parametrize("size, count", [("S", 22_050_664), ("B", 86_567_656), ("L", 304_326_632)])
def test_published_numbers_of_parameters(size, count):
    config = preset("vit", size, channels=3, num_classes=1000)
    state = nnx.state(nnx.eval_shape(lambda: ViT(config, length=224, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == count


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("position", ["learned", "sincos", "rope", "none"])
def test_special_tokens_and_positions_cost_what_they_should(pool, registers, position):
    config = tiny(pool=pool, registers=registers, position=position)
    state = nnx.state(nnx.eval_shape(lambda: ViT(config, length=SIDE, rngs=nnx.Rngs(0))))
    first = int(pool == "cls")
    named = {"class_token": first, "registers": registers, "positions": (position == "learned") * (first + 25)}
    sizes = {name: state[name].size // 16 if name in state else 0 for name in named}
    assert sizes == named


@pytest.mark.parametrize("attention", [
    case if case in OFTEN else pytest.param(case, marks=pytest.mark.slow) for case in IMAGE
])  # fmt: skip
def test_takes_any_variant_that_sees_both_sides(images, attention):
    """It learns, and the maps are the weights: times the values they give what the layer's attention gives."""
    config = tiny(attention=ATTENTION[attention], position="rope")
    logits, gradient = value_and_gradient(config, images, rng=jax.random.key(1))
    assert logits.shape == (B, 7) and logits.dtype == jnp.float32
    if attention == "longformer projected":  # the class token, a global one, is all that the last layer gives
        gradient.blocks.attention = {}
    assert_everything_learns(gradient)

    @jax.jit
    def layer_and_maps(state, images):
        model = nnx.merge(graph, state)
        x, places = embedded(model, images)
        block = model._layer(0)
        normed = block.attention_norm(x)
        rotate, grid = model._rotation(places), Grid(ROWS, COLUMNS)
        shared = model._shared().get("attention")
        wanted = block.attention(normed, rotate=rotate, grid=grid, shared=shared)
        maps = model.attention_maps(images)
        _, _, value = block.attention.heads(normed, normed, None)
        mixed = jnp.einsum("bnts,bsnh->btnh", maps[0], jnp.repeat(value, 2, axis=2))
        return wanted, block.attention.merge_heads(mixed), maps

    graph, state = nnx.split(ViT(config, length=SIDE, rngs=nnx.Rngs(0)))
    wanted, got, maps = layer_and_maps(jax.tree.map(lambda w: 5 * w, state), images)
    tokens = T + (0 if attention in ON_GRID else 2)
    assert [(m.shape, m.dtype) for m in maps] == [((B, 4, tokens, tokens), jnp.float32)] * 2
    ordinary = slice(2 if attention == "longformer projected" else 0, None)  # global rows have values of their own
    np.testing.assert_allclose(got[:, ordinary], wanted[:, ordinary], rtol=0, atol=64 * EPS * np.abs(wanted).max())
    if can(attention).softmax == "exact":
        assert all((m >= 0).all() for m in maps)
        np.testing.assert_allclose(jnp.stack(maps).sum(-1), 1, atol=tokens * EPS)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("case", ON_GRID)
def test_variants_on_the_grid_equal_dense_attention_under_their_mask(case, num_kv_heads):
    kind, settings = variant_of(ATTENTION[case])
    query, key, value = (
        jax.random.normal(jax.random.key(seed), (B, T, n, 3)) for seed, n in enumerate((4, num_kv_heads, num_kv_heads))
    )
    key_mask = jnp.arange(T) % 7 != 3
    key_mask = jnp.stack([key_mask, ~key_mask])
    row, column = np.indices((ROWS, COLUMNS)).reshape(2, -1)
    same = lambda x: x[:, None] == x  # noqa: E731
    if case == "axial":
        mask = np.stack([same(row), same(row), same(column), same(column)])
    else:
        mask = np.broadcast_to(same(row // 3) & same(column // 3), (4, T, T))
    wanted = dot_product_attention(query, key, value, mask=mask & np.asarray(key_mask)[:, None, None])
    attend = lambda *qkv: kind.attend(  # noqa: E731
        *qkv, settings=settings, causal=False, grid=Grid(ROWS, COLUMNS), key_mask=key_mask
    )
    got = jax.jit(attend)(query, key, value)
    real = np.asarray(key_mask)  # a padded query's row is nobody's
    np.testing.assert_allclose(np.asarray(got)[real], np.asarray(wanted)[real], atol=8 * EPS)


@pytest.mark.parametrize("case", ON_GRID)
def test_variants_on_the_grid_drop_weights(case):
    kind, settings = variant_of(ATTENTION[case])
    query, key, value = (jax.random.normal(jax.random.key(seed), (B, T, 4, 3)) for seed in range(3))
    grid = {"causal": False, "grid": Grid(ROWS, COLUMNS)}

    @jax.jit
    def attend(seed):
        dropout = {"dropout_rate": 0.5, "dropout_rng": jax.random.key(seed)}
        return kind.attend(query, key, value, settings=settings, **grid, **dropout)

    np.testing.assert_array_equal(attend(0), attend(0))
    assert (attend(0) != attend(1)).any(-1).mean() > 0.5


def test_two_axial_layers_reach_every_patch():
    config = tiny(attention={"name": "axial"}, position="none", patch_size=1, depth=2)
    model = ViT(config, length=SIDE, rngs=nnx.Rngs(0))

    @jax.jit
    def reached(images):
        """Whether the patch at (2, 3) depends on each pixel, after each layer."""
        sums = lambda images: jnp.stack([feature[0, 2, 3].sum() for feature in model.features(images)])  # noqa: E731
        return (jax.jacrev(sums)(images)[:, 0] != 0).any(-1)

    itself, once, twice = np.asarray(reached(jax.random.normal(jax.random.key(0), (1, 5, 7, 3))))
    assert itself.sum() == 1 and itself[2, 3]
    assert once.sum() == 5 + 7 - 1 and once[2].all() and once[:, 3].all()
    assert twice.all()


def test_sincos_positions_match_numpy():
    """An image of zeros, whose patches are 0 but for their positions."""
    model = ViT(tiny(position="sincos"), length=SIDE, rngs=nnx.Rngs(0))
    positions = jax.jit(lambda images: model.features(images)[0][0])(jnp.zeros((1, 2 * ROWS, 2 * COLUMNS, 3)))
    frequencies = 10000.0 ** -(np.arange(4) / 4)
    wanted = [
        [[*np.sin(c * frequencies), *np.cos(c * frequencies), *np.sin(r * frequencies), *np.cos(r * frequencies)]
         for c in range(COLUMNS)] for r in range(ROWS)
    ]  # fmt: skip
    np.testing.assert_allclose(positions, wanted, atol=8 * EPS)


def test_rope_turns_half_of_each_head_by_row_and_half_by_column(images):
    model = ViT(tiny(position="rope", num_heads=2, num_kv_heads=2), length=SIDE, rngs=nnx.Rngs(0))
    x, _ = embedded(model, images)
    block = jax.tree.map(lambda w: np.asarray(w[0], np.float64) * 10, nnx.state(model.blocks))
    x = np.asarray(x, np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * 10
    query, key = (np.einsum("btd,dnh->btnh", x, block.attention[name][...]) for name in ("query", "key"))
    row, column = np.pad(np.indices((ROWS, COLUMNS)).reshape(2, -1), ((0, 0), (2, 0)))  # special tokens at (0, 0)
    # Width 8 of a head: features 0, 1 pair with 2, 3 and turn by the row; 4, 5 with 6, 7 by the column.
    turns = lambda place: np.exp(1j * place[:, None, None] * 100.0 ** -(np.arange(2) / 2))  # noqa: E731

    def pairs(x):
        by_row, by_column = x[..., :2] + 1j * x[..., 2:4], x[..., 4:6] + 1j * x[..., 6:]
        return np.concatenate([by_row * turns(row), by_column * turns(column)], axis=-1)

    scores = np.einsum("btnh,bsnh->bnts", pairs(query), pairs(key).conj()).real / 8**0.5
    wanted = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    graph, state = nnx.split(model)
    blocks = jax.tree.map(lambda w: 10 * w, state.blocks)
    model = nnx.merge(graph, nnx.merge_state(state, nnx.State({"blocks": blocks})))
    np.testing.assert_allclose(jax.jit(model.attention_maps)(images)[0], wanted, atol=256 * EPS)


@pytest.mark.parametrize("position, shape", [("learned", (29, 31)), ("learned", (1, 1)), ("rope", (4, 21))])
def test_images_of_any_size(position, shape):
    model = ViT(tiny(position=position), length=SIDE, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (1, *shape, 3))
    logits, features = jax.jit(lambda images: (model(images), model.features(images)))(images)
    assert np.isfinite(logits).all() and logits.shape == (1, 7)
    assert {feature.shape for feature in features} == {(1, -(-shape[0] // 2), -(-shape[1] // 2), 16)}


def test_a_pixel_beyond_the_last_whole_patch_counts(images):
    apply = jax.jit(ViT(tiny(), length=SIDE, rngs=nnx.Rngs(0)))
    odd = images[:, :5, :9]
    assert (apply(odd.at[:, -1, -1].add(1)) != apply(odd)).all()
    padded = jnp.pad(odd, ((0, 0), (0, 1), (0, 1), (0, 0)))
    np.testing.assert_allclose(apply(padded), apply(odd), atol=16 * EPS)


def test_resized_tables():
    """Against transformers in test_pretrained; here that sides are not confused and the border is repeated."""
    row, column = np.indices((6, 8)).astype(np.float32)
    table = jnp.stack([row, column, jnp.ones_like(row)], axis=-1)
    assert resized(table, Grid(6, 8)) is table
    for grid in (Grid(12, 24), Grid(3, 5), Grid(1, 1)):
        rows, columns, ones = jnp.moveaxis(resized(table, grid), -1, 0)
        assert rows.shape == grid and ((rows[1:] > rows[:-1]).all() and (columns[:, 1:] > columns[:, :-1]).all())
        np.testing.assert_allclose(rows, rows[:, :1] + jnp.zeros(grid), atol=32 * EPS)
        np.testing.assert_allclose(rows + rows[::-1], 5, atol=32 * EPS)  # the middle stays the middle
        np.testing.assert_allclose(columns + columns[:, ::-1], 7, atol=32 * EPS)
        np.testing.assert_allclose(ones, 1, atol=8 * EPS)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_what_is_read_out(images, pool):
    """The last features, normed, their mean; or the class token, which the last layer mixes from all."""
    model = ViT(tiny(pool=pool, registers=0), length=SIDE, rngs=nnx.Rngs(0))
    if pool == "mean":
        read = lambda images: (model(images), model.head(model.norm(model.features(images)[-1]).mean((1, 2))))  # noqa: E731
        logits, wanted = jax.jit(read)(images)
        np.testing.assert_allclose(logits, wanted, atol=16 * EPS * np.abs(wanted).max())
    else:
        gradient = jax.jit(jax.grad(lambda images: model(images)[0, 0]))(images)
        assert (gradient[0] != 0).all() and not gradient[1].any()


@pytest.mark.slow
def test_scan_unrolled_and_remat_compute_the_same(images):
    base = {"dropout": 0.3, "attention_dropout": 0.2, "drop_path": 0.4, "position": "rope"}  # else key biases are idle
    wanted = value_and_gradient(tiny(**base), images, rng=jax.random.key(3))
    got = value_and_gradient(tiny(**base, scan_layers=False, remat=True), images, rng=jax.random.key(3))
    assert_trees_agree(got, wanted, roundings=64)


def test_stochastic_depth_leaves_out_whole_branches(images):
    """Of the last layer at this rate nearly always both, of the first never any."""
    many = jnp.repeat(images, 8, axis=0)
    model = ViT(tiny(drop_path=0.99, depth=2), length=SIDE, rngs=nnx.Rngs(0))
    embedded, first, last = jax.jit(lambda rng: model.features(many, rng=rng))(jax.random.key(1))
    assert (first != embedded).any((1, 2, 3)).all()
    assert (last == first).all((1, 2, 3)).sum() >= 12  # of 16; 0.98 are expected
    same = ViT(tiny(depth=2), length=SIDE, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(jax.jit(model)(images), jax.jit(same)(images))  # in evaluation every branch counts


def test_bfloat16(images):
    wide, narrow = (
        ViT(tiny(dtype=dtype, registers=0), length=SIDE, rngs=nnx.Rngs(0)) for dtype in ("float32", "bfloat16")
    )
    shown = jax.eval_shape(lambda: (narrow(images), narrow.features(images)[-1], narrow.attention_maps(images)[0]))
    assert [x.dtype for x in shown] == [jnp.float32, jnp.bfloat16, jnp.float32]
    logits, wanted = jax.jit(narrow)(images), jax.jit(wide)(images)
    # Roundings of 2^-9 at some ten operations one after the other.
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=10 * 2**-9 * np.abs(wanted).max())


def test_biases_and_norms_do_not_decay():
    state = nnx.eval_shape(lambda: nnx.state(ViT(tiny(), length=SIDE, rngs=nnx.Rngs(0))))
    decays = jax.tree_util.tree_leaves_with_path(is_matrix(nnx.to_pure_dict(state)))
    kept = {path[-1].key for path, decay in decays if not decay}
    assert kept == {
        "class_token",
        "positions",
        "registers",
        "scale",
        "bias",
        *(f"{n}_bias" for n in ("query", "key", "value", "out", "into")),
    }


WRONG = [
    ({"pool": "max"}, "model.pool: got 'max'; write one of cls, mean"),
    ({"position": "alibi"}, "model.position: got 'alibi'; write one of learned, sincos, rope, none"),
    ({"registers": -1}, "model.registers: wanted at least 0, got -1"),
    ({"patch_size": -1}, "model.patch_size: wanted at least 0, got -1"),
    ({"drop_path": 1.0}, "model.drop_path: wanted a rate in [0, 1), got 1.0; write 0.0 for none"),
    ({"width": 18, "num_heads": 6, "position": "sincos"}, "model.width: sincos wants a multiple of 4"),
    ({"width": 24, "position": "rope"}, "model.width: rope turns pairs in two directions, and width / num_heads = 6"),
    ({"position": "rope", "rope_base": 1.0}, "model.rope_base: wanted a number above 1, got 1.0"),
    ({"attention": ATTENTION["axial"], "pool": "cls"}, "model.pool: 'axial' has no place on the grid for special tokens, got 'cls'; write 'mean'"),
    ({"attention": ATTENTION["grid_window"], "registers": 2}, "model.registers: 'grid_window' has no place on the grid for special tokens, got 2; write 0"),
    ({"attention": ATTENTION["axial"], "num_heads": 1, "num_kv_heads": 1}, "model.attention.name: 'axial' gives half of the heads to each axis, got num_heads = 1"),
    ({"attention": {"name": "grid_window"}}, "model.attention.window: missing for 'grid_window'; write window=7"),
    ({"attention": ATTENTION["retention"]}, "model.attention.name: 'retention' never looks ahead, so no encoder can use it; write one of"),
    ({"attention": ATTENTION["linear"], "attention_dropout": 0.1}, "model.attention_dropout: 'linear' has no weights to drop"),
    ({"vocab_size": 3}, "model.vocab_size: unknown field; the fields are name, channels"),
]  # fmt: skip


@pytest.mark.parametrize("changes, message", WRONG)
def test_check_refuses(changes, message):
    with pytest.raises(ValueError) as error:
        check(tiny(**changes), SIDE)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["channels", "num_classes"])
def test_a_field_that_only_data_know_is_for_the_check_and_not_for_the_model(field):
    config = tiny(**{field: 0})
    check(config, SIDE)
    with pytest.raises(ValueError, match=f"model.{field}: 0 stands for what the data have"):
        ViT(config, length=SIDE, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("shape, dtype", [((B, 6, 10, 1), float), ((6, 10, 3), float), ((B, 6, 10, 3), int), ((B, 0, 10, 3), float)])  # fmt: skip
def test_refuses_what_is_no_image(shape, dtype):
    model = ViT(tiny(), length=SIDE, rngs=nnx.Rngs(0))
    for call in (model, model.features, model.attention_maps):
        with pytest.raises(ValueError, match=r"^images: wanted .*$"):
            call(jnp.zeros(shape, dtype))


def test_refuses_a_layer_without_its_grid():
    layer = Attention(tiny(attention=ATTENTION["axial"]), length=T, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="grid: this variant wants the rows and columns of the tokens, got None"):
        layer(jnp.ones((B, T, 16)))


def test_parameters_over_the_length_go_no_further():
    apply, state = build(tiny(attention=ATTENTION["linformer"]), length=6)
    apply(state, jnp.ones((1, 6, 6, 3)))
    with pytest.raises(ValueError, match="key_projection: wanted"):
        apply(state, jnp.ones((1, 8, 8, 3)))
