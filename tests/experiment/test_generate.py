"""Sampling: what each setting keeps, what is drawn, and that a model continues a text as its parallel form would."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import nnx

import eval as evaluation
import train
from configs.compare_text import get_config
from experiment.generate import check_flags, define_flags, draw, generate, keep_top_k, keep_top_p, print_texts
from experiment.settings import SettingsError
from models.transformer import Transformer

LOGITS = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32) * 3


def kept(logits):
    return np.isfinite(np.asarray(logits))


@pytest.mark.parametrize("k", [1, 2, 7, 40])
def test_top_k_keeps_exactly_k(k):
    out = np.asarray(keep_top_k(LOGITS, k))
    assert (kept(out).sum(-1) == k).all()
    np.testing.assert_array_equal(np.sort(out)[:, -k:], np.sort(LOGITS)[:, -k:])
    np.testing.assert_array_equal(out[kept(out)], LOGITS[kept(out)])


def test_top_k_of_equal_logits_keeps_the_first():
    np.testing.assert_array_equal(kept(keep_top_k(jnp.zeros((2, 6)), 3)), [[True] * 3 + [False] * 3] * 2)
    np.testing.assert_array_equal(keep_top_k(LOGITS, 0), LOGITS)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_with_the_mass(p):
    out = keep_top_p(LOGITS, p)
    probability = np.exp(LOGITS.astype(np.float64))
    probability /= probability.sum(-1, keepdims=True)
    for row, keep in zip(probability, kept(out), strict=True):
        assert row[keep].min() >= row[~keep].max()  # the likeliest
        assert row[keep].sum() >= p  # enough of them
        assert row[keep].sum() - row[keep].min() < p  # and none too many


def test_top_p_at_its_ends():
    np.testing.assert_array_equal(keep_top_p(LOGITS, 1.0), LOGITS)
    equal = jnp.zeros(8)  # probabilities of 1/8, exact
    for p, count in ((0.125, 1), (0.126, 2), (0.5, 4), (0.99, 8)):
        np.testing.assert_array_equal(kept(keep_top_p(equal, p)), np.arange(8) < count)


def test_top_p_is_taken_of_what_top_k_left():
    """Of 0.4 0.3 0.2 0.1 the first two are renormalised to 4/7 3/7, and 0.5 is reached by the first alone."""
    logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    assert kept(keep_top_p(keep_top_k(logits, 2), 0.5)).tolist() == [True, False, False, False]
    assert kept(keep_top_p(logits, 0.5)).tolist() == [True, True, False, False]
    assert kept(keep_top_p(keep_top_k(logits, 2), 0.9)).tolist() == [True, True, False, False]


def test_temperature_zero_is_greedy():
    for settings in ({}, {"top_k": 3, "top_p": 0.5}):
        np.testing.assert_array_equal(draw(LOGITS, None, temperature=0, **settings), LOGITS.argmax(-1))
    assert draw(jnp.array([1.0, 2.0, 2.0]), None, temperature=0) == 1


def test_frequencies_follow_the_distribution():
    """Within 5 standard errors of softmax(logits / temperature) on the two tokens kept, and never another.

    At temperature 0.7 the likeliest three stand 17.4 : 4.2 : 1, of which two are 0.956.
    """
    logits, count = jnp.array([2.0, 1.0, 0.0, -1.0]), 20000
    tokens = draw(jnp.broadcast_to(logits, (count, 4)), jax.random.key(1), temperature=0.7, top_k=3, top_p=0.95)
    assert tokens.max() == 1
    wanted = 1 / (1 + np.exp(-1 / 0.7))
    assert abs((tokens == 0).mean() - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / count)


class Counter:
    """A decoder whose next token is one more than the last, modulo its size, for sure; `log` is what it was asked."""

    def __init__(self, size=10):
        self.size, self.log = size, []

    def start(self, batch_size, capacity):
        self.log.append(("start", batch_size, capacity))
        return jnp.zeros((), jnp.int32)

    def step(self, tokens, state):
        self.log.append(("step", tokens.shape))
        return 50.0 * jax.nn.one_hot((tokens + 1) % self.size, self.size), state + tokens.shape[1]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_each_token_follows_the_one_before(length):
    model, prompt = Counter(), jnp.array([[3, 4, 5], [0, 0, 8]])
    out = generate(model, prompt, length=length, temperature=0)
    np.testing.assert_array_equal(out, (np.array([[6], [9]]) + np.arange(length)) % 10)
    assert model.log[:2] == [("start", 2, 3 + length - 1), ("step", (2, 3))]
    assert model.log[2:] in ([("step", (2, 1))], [("step", (2, 1))] * 2)  # traced once or twice, never once a token


@pytest.mark.parametrize("count, rest", [(2, 3), (3, 1), (1, 2), (0, 3)])
def test_a_long_prompt_is_read_in_chunks(count, rest):
    """Chunks of one size in a scan, which is traced once or twice, then what is left, then token by token."""
    model, prompt = Counter(), jnp.arange(2 * (3 * count + rest)).reshape(2, -1) % 10
    out = generate(model, prompt, length=4, temperature=0, chunk_size=3)
    np.testing.assert_array_equal(out, (prompt[:, -1:] + 1 + np.arange(4)) % 10)
    steps = [shape for _, shape in model.log[1:]]
    assert list(dict.fromkeys(steps)) == list(dict.fromkeys([(2, 3)] * count + [(2, rest), (2, 1)]))
    assert len(steps) <= 5


def test_draws_depend_on_the_rng_alone():
    class Uniform(Counter):
        def step(self, tokens, state):
            return jnp.zeros((*tokens.shape, 10)), state

    run = jax.jit(lambda rng: generate(Uniform(), jnp.zeros((4, 1), int), length=30, rng=rng))
    first, again, other = (np.asarray(run(jax.random.key(n))) for n in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.8
    assert all((first[0] != row).mean() > 0.6 for row in first[1:])  # rows are independent
    assert len(np.unique(first)) == 10


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": -1.0}, "temperature: wanted a number of at least 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature: wanted"),
        ({"top_k": -1}, "top_k: wanted an integer of at least 0, got -1"),
        ({"top_k": 11}, "top_k: wanted at most the 10 tokens there are, got 11"),
        ({"top_p": 0.0}, r"top_p: wanted a number in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, "top_p: wanted"),
        ({"rng": None}, "rng: wanted a jax.random.key, got None"),
        ({"length": 0}, "prompt, length: wanted"),
        ({"prompt": jnp.zeros((1, 0), int)}, "prompt, length: wanted"),
    ],
)
def test_refusals(settings, message):
    arguments = {"prompt": jnp.zeros((1, 2), int), "length": 3, "rng": jax.random.key(0)} | settings
    with pytest.raises(ValueError, match=message):
        generate(Counter(), **arguments)


@pytest.mark.parametrize("attention", [{"name": "full"}, {"name": "window", "window": 3}])
def test_a_transformer_goes_on_as_its_parallel_form_would(attention):
    config = get_config().model
    config.update({"width": 8, "depth": 1, "num_heads": 2, "num_kv_heads": 1, "mlp_width": 8, "attention": attention})
    graph, state = nnx.split(Transformer(config, length=12, rngs=nnx.Rngs(0)))
    state = jax.tree.map(lambda x: x * 10, state)  # or the greedy choice would hang on rounding
    prompt = jnp.array([[3, 100, 7, 41], [250, 0, 9, 9]])
    out = jax.jit(lambda state: generate(nnx.merge(graph, state), prompt, length=8, temperature=0))(state)
    logits = jax.jit(lambda state, tokens: nnx.merge(graph, state)(tokens))(state, jnp.concatenate([prompt, out], 1))
    np.testing.assert_array_equal(out, logits[:, 3:-1].argmax(-1))
    assert len(np.unique(out)) > 3


@pytest.mark.parametrize(
    "attention",
    [
        {"name": "full"},
        {"name": "window", "window": 3},
        {"name": "linear", "chunk_size": 3, "feature_map": "elu_plus_one"},
    ],
)
def test_a_transformer_reads_a_prompt_in_chunks_as_at_once(attention):
    config = get_config().model
    config.update({"width": 8, "depth": 1, "num_heads": 2, "num_kv_heads": 1, "mlp_width": 8, "attention": attention})
    graph, state = nnx.split(Transformer(config, length=20, rngs=nnx.Rngs(0)))
    state = jax.tree.map(lambda x: x * 10, state)
    prompt = jnp.asarray(np.random.default_rng(2).integers(0, 256, (2, 11)))

    @functools.partial(jax.jit, static_argnums=1)
    def run(state, size):
        return generate(nnx.merge(graph, state), prompt, length=8, temperature=0, chunk_size=size)

    at_once = run(state, 11)
    for size in (4, 5):  # a rest of 3, a rest of 1
        np.testing.assert_array_equal(run(state, size), at_once)
    assert len(np.unique(at_once)) > 3


def parsed(*arguments):
    values = flags.FlagValues()
    flags.DEFINE_integer("length", None, "", flag_values=values)
    define_flags(values)
    values(["eval.py", *arguments])
    return values


class Mute:
    def start(self, batch_size, capacity):
        raise NotImplementedError("has no state to decode from")


LEARNERS = {
    "counter": SimpleNamespace(model=lambda params: Counter(256)),
    "mute": SimpleNamespace(model=lambda params: Mute()),
}


def test_texts_are_printed_and_what_cannot_go_on_says_so(capsys):
    warnings, values = [], parsed("--generate", "--prompt=ab", "--tokens=4", "--num_samples=2", "--top_p=0.9")
    print_texts(values, LEARNERS, lambda label: (LEARNERS[label], None), warnings.append)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line and not line.startswith("==")] == ["abcdef"] * 2
    assert [line.split(":")[0] for line in lines if line.startswith("==")] == [
        "== counter, text 1 of 2",
        "== counter, text 2 of 2",
    ]
    assert warnings == ["mute: has no state to decode from"]


def test_what_is_no_text_is_shown_as_such(capsys):
    """Bytes that are not UTF-8, in the prompt or in what follows."""
    values = parsed("--generate", "--prompt=\udcfe", "--tokens=2", "--temperature=0")
    print_texts(values, {"counter": 0}, lambda label: (LEARNERS[label], None), None)
    assert "\ufffd\ufffd\x00" in capsys.readouterr().out


def test_no_text_at_all_is_an_error():
    for variant, message in (("mute", "none of these variants"), ("lsh", "--variant=lsh: not finished or unknown")):
        values = parsed("--generate", f"--variant={variant}")
        with pytest.raises(SettingsError, match=message):
            print_texts(values, LEARNERS, lambda label: (LEARNERS[label], None), lambda line: None)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--prompt=def "], "--prompt: has no effect without --generate"),
        (["--top_k=3"], "--top_k: has no effect without --generate"),
        (["--generate", "--length=9"], "--length: has no effect with --generate"),
        (["--generate", "--prompt="], "--prompt: is empty"),
        (["--generate", "--tokens=0"], "--tokens=0: want at least 1"),
        (["--generate", "--num_samples=-1"], "--num_samples=-1: want at least 1"),
        (["--generate", "--top_p=2"], "top_p: wanted a number in"),
    ],
)
def test_flags_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_flags(parsed(*arguments))
    check_flags(parsed())
    check_flags(parsed("--generate", "--seed=3"))


@pytest.mark.slow
def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    """Two steps of training, then a text, and another from another seed."""
    monkeypatch.setattr("experiment.report.write_report", lambda *_: None)
    story = tmp_path / "story.txt"
    story.write_text("".join(f"{n} bottles of beer on the wall.\n" for n in range(300)))
    run = f"--workdir={tmp_path / 'run'}"
    sizes = {"data.length": 13, "model.width": 6, "model.depth": 1, "model.num_heads": 3, "model.num_kv_heads": 3,
             "model.mlp_width": 5, "train.steps": 2, "train.warmup_steps": 1, "train.checkpoint_every": 2,
             "train.evaluate_every": 2, "data.validation_bytes": 200, "scaling.seconds": 0}  # fmt: skip
    settings = [f"--config.{name}={value}" for name, value in sizes.items()]
    assert train.main(["train.py", run, f"--config.data.path={story}", "--config.only=full", *settings]) == 0
    capsys.readouterr()
    texts = []
    for seed in (0, 1):
        assert evaluation.main(["eval.py", run, "--generate", "--tokens=20", f"--seed={seed}"]) == 0
        heading, text = capsys.readouterr().out.split("\n", 1)
        assert heading.startswith("== full: ") and text.startswith("def ")
        texts.append(text)
    assert texts[0] != texts[1]
    assert evaluation.main(["eval.py", run, "--generate", "--variant=linear"]) == 2
    assert "want some of full" in capsys.readouterr().err
