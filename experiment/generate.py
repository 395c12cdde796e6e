"""Text from a trained decoder: a token at a time from its decoding state, drawn from the likely ones."""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from experiment.settings import SettingsError

PROMPT_CHUNK = 256  # a ring of C slots takes up t tokens at once in O(t (C + t)): a long prompt in parts, so O(P C)


def generate(model, prompt, *, length, temperature=1.0, top_k=0, top_p=1.0, rng=None, chunk_size=PROMPT_CHUNK):
    """Continues each row of `prompt`.

    The prompt is read in chunks, then every token is drawn from the distribution that `draw` makes of the model's and
    handed to the next step, in one `lax.scan`. Three shapes of the step are compiled at most: a chunk, the rest of the
    prompt, one token. Each step costs what the variant's state costs (`attention.cache`).

    Args:
      model: a decoder with `start(batch_size, capacity)` and `step(tokens, state)`, as `models.transformer` has.
      prompt: int [B, P], P >= 1.
      length: tokens to add, L.
      temperature: as in `draw`.
      top_k: as in `draw`.
      top_p: as in `draw`.
      rng: a `jax.random.key`; None only for temperature 0, which draws nothing.
      chunk_size: tokens of the prompt that are read at once, at most.

    Returns:
      int32 [B, L], without the prompt.

    Raises:
      ValueError: a setting out of its range.
      NotImplementedError: the model cannot decode from a state.
    """
    check_sampling(temperature, top_k, top_p)
    if prompt.ndim != 2 or not prompt.size or length < 1:
        raise ValueError(f"prompt, length: wanted [B, P] and at least one token of each, got {prompt.shape}, {length}")
    if rng is None and temperature:
        raise ValueError("rng: wanted a jax.random.key, got None; only temperature=0 draws nothing")
    rngs = jax.random.split(jax.random.key(0) if rng is None else rng, length)
    state = model.start(prompt.shape[0], prompt.shape[1] + length - 1)
    rest, state = read(model, prompt.astype(jnp.int32), state, chunk_size)

    def add(carry, rng):
        tokens, state = carry
        logits, state = model.step(tokens, state)
        token = draw(logits[:, -1], rng, temperature=temperature, top_k=top_k, top_p=top_p)
        return (token[:, None], state), token

    carry, first = add((rest, state), rngs[0])
    _, others = lax.scan(add, carry, rngs[1:])
    return jnp.concatenate([first[:, None], others.T], axis=1)


def read(model, prompt, state, chunk_size):
    """Takes up all whole chunks of `prompt [B, P]` but what may be the last.

    Returns:
      (the 1 to chunk_size tokens that are left, the state before them).
    """
    count = (prompt.shape[1] - 1) // chunk_size
    chunks, rest = jnp.split(prompt, [count * chunk_size], axis=1)
    if count:  # a scan of no steps would be compiled too
        chunks = jnp.moveaxis(chunks.reshape(len(prompt), count, chunk_size), 1, 0)
        state, _ = lax.scan(lambda state, chunk: (model.step(chunk, state)[1], None), state, chunks)
    return rest, state


def draw(logits, rng, *, temperature=1.0, top_k=0, top_p=1.0):
    """A token of each row of `logits [..., V]`, int32 `[...]`.

        p = softmax(logits / temperature) over the top_k likeliest tokens, of those over the top_p likeliest mass

    Args:
      logits: [..., V] float.
      rng: a `jax.random.key`.
      temperature: above 1 flattens, below 1 sharpens; 0 takes the likeliest token, the first of equal ones.
      top_k: how many tokens are kept (Fan et al. 2018, arXiv:1805.04833, section 5.4); 0 keeps all.
      top_p: mass of the tokens kept (Holtzman et al. 2020, arXiv:1904.09751, section 3.1); 1 keeps all.

    Raises:
      ValueError: a setting out of its range.

    >>> draw(jnp.log(jnp.array([0.1, 0.6, 0.3])), jax.random.key(0), top_p=0.5)
    Array(1, dtype=int32)
    """
    check_sampling(temperature, top_k, top_p)
    if not temperature:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = keep_top_p(keep_top_k(logits / temperature, top_k), top_p)
    return jax.random.categorical(rng, logits).astype(jnp.int32)


def keep_top_k(logits, k):
    """`logits [..., V]` with -inf for all but exactly the k largest; of equal ones the first are kept. 0 keeps all.

    >>> keep_top_k(jnp.array([1.0, 3.0, 2.0, 3.0, 3.0]), 2).tolist()
    [-inf, 3.0, -inf, 3.0, -inf]
    """
    if k > logits.shape[-1]:
        raise ValueError(f"top_k: wanted at most the {logits.shape[-1]} tokens there are, got {k}")
    return jnp.where(_rank(logits) < (k or logits.shape[-1]), logits, -jnp.inf)


def keep_top_p(logits, p):
    """`logits [..., V]` with -inf for all but the fewest tokens whose probabilities sum to p or more; 1 keeps all.

    >>> keep_top_p(jnp.log(jnp.array([0.125, 0.5, 0.25, 0.125])), 0.75).tolist()[0]
    -inf
    """
    if p == 1:
        return logits  # sums of float32 may reach 1 before the last token
    ordered = -jnp.sort(-jax.nn.softmax(logits, axis=-1), axis=-1)
    before = jnp.cumsum(ordered, axis=-1) - ordered  # mass of the likelier tokens: kept while it is below p
    kept = jnp.take_along_axis(before < p, _rank(logits), axis=-1)
    return jnp.where(kept, logits, -jnp.inf)


def _rank(logits):
    """The place of each token when the largest comes first, equal ones in their order."""
    return jnp.argsort(jnp.argsort(-logits, axis=-1, stable=True), axis=-1)


def check_sampling(temperature, top_k, top_p):
    """Raises ValueError unless the settings of `draw` are in their ranges."""
    if not 0 <= temperature < np.inf:
        raise ValueError(f"temperature: wanted a number of at least 0, got {temperature}")
    if type(top_k) is not int or top_k < 0:
        raise ValueError(f"top_k: wanted an integer of at least 0, got {top_k!r}; 0 keeps every token")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: wanted a number in (0, 1], got {top_p}; 1 keeps every token")


# Flag -> (kind, default, help), of `eval.py --generate`.
FLAGS = {
    "prompt": (flags.DEFINE_string, "def ", "text to go on from"),
    "variant": (flags.DEFINE_string, "", "labels, comma-separated; empty = every finished variant"),
    "tokens": (flags.DEFINE_integer, 200, "how many bytes to add"),
    "num_samples": (flags.DEFINE_integer, 1, "how many texts of each variant"),
    "temperature": (flags.DEFINE_float, 0.8, "of the distribution that is drawn from; 0 = always the likeliest byte"),
    "top_k": (flags.DEFINE_integer, 40, "draw from the k likeliest bytes; 0 = all"),
    "top_p": (flags.DEFINE_float, 0.95, "of those, from the fewest with this much probability; 1 = all"),
    "seed": (flags.DEFINE_integer, 0, "of the draws"),
}


def define_flags(values):
    """Adds `--generate` and the flags that go with it."""
    flags.DEFINE_boolean("generate", False, "go on from --prompt instead of judging", flag_values=values)
    for name, (define, default, text) in FLAGS.items():
        define(name, default, text, flag_values=values)


def check_flags(values):
    """Raises ValueError for a flag that would have no effect or cannot be."""
    if not values.generate:
        for name in FLAGS:
            if values[name].present:
                raise SettingsError(f"--{name}: has no effect without --generate; give both or neither")
        return
    if values["length"].present:
        raise SettingsError("--length: has no effect with --generate; --tokens says how many bytes to add")
    if not values.prompt:
        raise SettingsError("--prompt: is empty, want at least one byte to go on from")
    for name in ("tokens", "num_samples"):
        if values[name].value < 1:
            raise SettingsError(f"--{name}={values[name].value}: want at least 1")
    check_sampling(values.temperature, values.top_k, values.top_p)


def print_texts(values, finished, load, warn):
    """Prints how variants go on from the prompt; one that cannot is told in a line and left out.

    Args:
      values: the parsed flags.
      finished: labels of the variants that have been trained.
      load: label -> (its `Learner`, its parameters).
      warn: takes a line.

    Raises:
      SettingsError: an unknown label, or no variant that could go on.
    """
    labels = [label.strip() for label in values.variant.split(",") if label.strip()] or list(finished)
    for label in labels:
        if label not in finished:
            raise SettingsError(f"--variant={label}: not finished or unknown, want some of {', '.join(finished)}")
    prompt, printed = os.fsencode(values.prompt), 0
    for label in labels:
        try:
            texts, speed = continue_prompt(*load(label), prompt, values)
        except (ValueError, NotImplementedError) as error:
            warn(f"{label}: {error}")
            continue
        for number, text in enumerate(texts, 1):
            which = f", text {number} of {len(texts)}" if len(texts) > 1 else ""
            print(f"== {label}{which}: {speed:,.0f} tokens/s\n{text.decode(errors='replace')}\n", flush=True)
        printed += 1
    if not printed:
        raise SettingsError("--generate: none of these variants can go on from a prompt")


def continue_prompt(learner, weights, prompt, values):
    """The texts of one model, prompt first, as bytes, and the tokens per second of all of them after compiling."""
    tokens = jnp.broadcast_to(jnp.frombuffer(prompt, jnp.uint8).astype(jnp.int32), (values.num_samples, len(prompt)))
    settings = dict(temperature=values.temperature, top_k=values.top_k, top_p=values.top_p)

    def run(weights, rng):
        return generate(learner.model(weights), tokens, length=values.tokens, rng=rng, **settings)

    rng = jax.random.key(values.seed)
    program = jax.jit(run).lower(weights, rng).compile()
    begin = time.perf_counter()
    added = np.asarray(program(weights, rng))
    seconds = time.perf_counter() - begin
    return [prompt + bytes(row.astype(np.uint8)) for row in added], added.size / seconds
