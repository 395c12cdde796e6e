"""A small dependency parser, trained in seconds on the sentences at hand, for trees that no annotator drew.

    x = embed(words);   x = x + gelu(conv(norm(x)))  a few times;   score(i, j) = d_i U h_j + u h_j + b_{i - j}

Word i depends on word j, or on the root, with probability softmax_j(score(i, j)); a sentence's tree is the best one
under these scores. The bilinear score of arcs is that of Dozat & Manning 2017, "Deep Biaffine Attention for Neural
Dependency Parsing", arXiv:1611.01734, eq. 3 to 9; in place of their LSTM a few convolutions read the words, and a
learned number for each distance b says that heads are near.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

WIDTH, LAYERS, WINDOW = 96, 3, 5  # of the convolutions, WINDOW words each
ARC = 64  # width of d and h
FARTHEST = 16  # distances from there on share one number
STEPS, TOKENS, LEARNING_RATE = 1600, 512, 3e-3  # TOKENS in a step, padding included
PARSED = 4096  # tokens parsed at once, padding included
LENGTHS = (16, 32, 64)  # sentences are padded to the next of these, or a longer power of two; training takes no longer
DROPOUT = 0.2  # of the words' features, in training


def jackknife(train, owners, judged, vocabulary):
    """Trees for sentences as a parser would give them that has seen none of them.

    The training sentences are halved by their owner: two parsers are trained, one on each half, and each parses the
    other's. Sentences to judge are parsed by the parser of the first half, so that trees are as good there as in
    training.

    Args:
      train: list of (tokens [n] int, heads [n] int, -1 for the root) to train on and to parse.
      owners: int, one for each of `train`: sentences with the same one stay together.
      judged: list of (tokens [n], heads [n]) to parse.
      vocabulary: number of tokens.

    Returns:
      (heads of each of `train`, heads of each of `judged`), lists of int32 [n].

    Raises:
      ValueError: fewer than two training sentences.
    """
    order = np.unique(owners, return_inverse=True)[1]
    if not len(order) or not order.max():
        raise ValueError(
            f"tree='predicted' wants two or more training sentences to parse apart, got {len(set(owners))}"
        )
    halves = [np.flatnonzero(order % 2 == half) for half in (0, 1)]
    trees = [None] * len(train)
    with _progress("training a parser on either half", 2 * STEPS) as advance:
        parsers = [fit([train[row] for row in half], vocabulary, advance) for half in halves]
    for parser, half in zip(parsers, reversed(halves), strict=True):
        for row, heads in zip(half, parse(parser, [train[row][0] for row in half]), strict=True):
            trees[row] = heads
    return trees, parse(parsers[0], [tokens for tokens, _ in judged])


def fit(sentences, vocabulary, advance=lambda: None, *, steps=STEPS, seed=0):
    """The parameters of a parser that has learnt from sentences, the same for the same ones.

    Args:
      sentences: list of (tokens [n] int, heads [n] int, -1 for the root); those beyond the last of LENGTHS are skipped.
      vocabulary: number of tokens.
      advance: called after each step.
      steps: so many.
      seed: of the initial parameters and of the order.

    Returns:
      A pytree for `parse`.

    Raises:
      ValueError: all sentences are longer than that.
    """
    import optax  # takes a second, which no wrong flag should wait for

    short = [pair for pair in sentences if len(pair[0]) <= LENGTHS[-1]]
    if not short:
        raise ValueError(f"tree='predicted': the parser found no sentence of at most {LENGTHS[-1]} words to learn from")
    batches = [_padded([short[row] for row in rows], length) for length, rows in _by_length(short).items()]
    shares = np.array([tokens.size for tokens, _ in batches], float)
    parameters, schedule = _initial(jax.random.key(seed), vocabulary), optax.cosine_decay_schedule(LEARNING_RATE, steps)
    state, rng = optax.scale_by_adam().init(parameters), np.random.default_rng(seed)
    for step in range(steps):
        tokens, heads = batches[rng.choice(len(batches), p=shares / shares.sum())]
        rows = rng.integers(0, len(tokens), TOKENS // tokens.shape[1])
        key = jax.random.fold_in(jax.random.key(seed), step)
        parameters, state = _step(parameters, state, tokens[rows], heads[rows], key, schedule(step))
        advance()
    return parameters


def parse(parameters, sentences):
    """The best tree of each sentence.

    Args:
      parameters: from `fit`.
      sentences: list of tokens [n] int.

    Returns:
      A list of heads, int32 [n], -1 for the root, of which a tree has one.
    """
    trees = [None] * len(sentences)
    for length, rows in _by_length([(tokens,) for tokens in sentences]).items():
        size = max(1, PARSED // length)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            tokens, _ = _padded([(sentences[row], sentences[row]) for row in part], length)
            tokens = np.pad(tokens, ((0, size - len(part)), (0, 0)), constant_values=-1)
            scores = np.asarray(_scores_of(parameters, tokens))
            for row, score in zip(part, scores, strict=False):
                trees[row] = best_tree(score[: len(sentences[row]), : 1 + len(sentences[row])])
    return trees


def best_tree(scores):
    """The tree with one root whose arcs have the largest sum of scores.

    Chu & Liu 1965 and Edmonds 1967: every word takes its best head; words that run in a circle become one, whose best
    way out is found in the graph that is left. O(n^3) at worst, O(n^2) where no circle comes up. If that gives several
    roots, a constant is taken from every arc to the root, larger than all other sums can differ, which leaves one.

    Args:
      scores: [n, n + 1] float, of word i's dependence on the root at column 0, on word j at column j + 1.

    Returns:
      heads int32 [n], -1 for the root.

    >>> best_tree(np.array([[0.0, 0.0, 9.0], [1.0, 9.0, 0.0]])).tolist()
    [1, -1]
    """
    count = len(scores)
    square = np.full((count + 1, count + 1), -np.inf)  # node 0 is the root, and depends on none
    square[1:] = scores
    np.fill_diagonal(square, -np.inf)
    heads = _arborescence(square)
    if (heads == 0).sum() > 2:  # the root itself, and more than one word
        square[1:, 0] -= 1 + count * np.ptp(scores)
        heads = _arborescence(square)
    return (heads[1:] - 1).astype(np.int32)


def _arborescence(scores):
    """Head of each node in the best tree over all nodes from node 0; scores[i, j] of the arc from head j to i."""
    heads = scores.argmax(1)
    heads[0] = 0
    circle = _circle(heads)
    if circle is None:
        return heads
    inside = np.isin(np.arange(len(scores)), circle)
    rest = np.flatnonzero(~inside)
    # The circle is the last node of a smaller graph. Whoever enters it at node i replaces the arc that i had in it.
    entering = scores[np.ix_(circle, rest)] - scores[circle, heads[circle]][:, None]
    leaving = scores[np.ix_(rest, circle)]
    smaller = np.full((len(rest) + 1, len(rest) + 1), -np.inf)
    smaller[:-1, :-1] = scores[np.ix_(rest, rest)]
    smaller[-1, :-1] = entering.max(0)
    smaller[:-1, -1] = leaving.max(1)
    found = _arborescence(smaller)
    joined = found[:-1] == len(rest)
    heads[rest] = np.where(joined, circle[leaving.argmax(1)], rest[np.where(joined, 0, found[:-1])])
    heads[circle[entering[:, found[-1]].argmax()]] = rest[found[-1]]
    heads[0] = 0
    return heads


def _circle(heads):
    """The nodes of one circle that following the heads runs into, None if all ways lead to node 0."""
    heads = heads.tolist()
    settled = {0}
    for node in range(len(heads)):
        path = []
        while node not in settled:
            settled.add(node)
            path.append(node)
            node = heads[node]
        if node in path:
            return np.array(path[path.index(node) :])
    return None


@contextlib.contextmanager
def _progress(title, steps):
    """Draws a bar of `steps` on a terminal, else prints one line; gives the function that counts a step."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(title)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=steps)
        yield lambda: progress.advance(task)


def _initial(rng, vocabulary):
    keys = iter(jax.random.split(rng, LAYERS + 5))
    normal = lambda std, *shape: std * jax.random.normal(next(keys), shape)  # noqa: E731
    return {
        "embedding": normal(0.1, vocabulary, WIDTH),
        "convolutions": [normal((WINDOW * WIDTH) ** -0.5, WINDOW, WIDTH, WIDTH) for _ in range(LAYERS)],
        "dependent": normal(WIDTH**-0.5, WIDTH, ARC),
        "head": normal(WIDTH**-0.5, WIDTH, ARC),
        "root": normal(0.1, ARC),
        "bilinear": normal(1 / ARC, ARC, ARC),
        "prior": jnp.zeros(ARC),
        "distance": jnp.zeros(2 * FARTHEST + 1),
    }


def _scores(parameters, tokens, rng=None):
    """tokens [B, T], -1 = padding -> scores [B, T, 1 + T] of the head of each word, the root first."""
    real = (tokens >= 0)[..., None]
    x = jnp.where(real, parameters["embedding"][tokens], 0)
    for number, kernel in enumerate(parameters["convolutions"]):
        y = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        if rng is not None:
            y = _dropout(y, jax.random.fold_in(rng, number))
        y = jax.lax.conv_general_dilated(y, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        x = jnp.where(real, x + jax.nn.gelu(y), 0)
    dependent, head = (jax.nn.gelu(x @ parameters[name]) for name in ("dependent", "head"))
    head = jnp.concatenate([jnp.broadcast_to(parameters["root"], (len(head), 1, ARC)), head], 1)
    arcs = jnp.einsum("bia,ac,bjc->bij", dependent, parameters["bilinear"], head)
    arcs += (head @ parameters["prior"])[:, None]
    places = jnp.arange(tokens.shape[1])
    distance = jnp.clip(places[:, None] - places, -FARTHEST, FARTHEST) + FARTHEST
    arcs = arcs.at[:, :, 1:].add(parameters["distance"][distance])
    alone = places[:, None] == places
    barred = jnp.pad(alone | ~real[:, None, :, 0], ((0, 0), (0, 0), (1, 0)))
    return jnp.where(barred, -1e9, arcs)


_scores_of = jax.jit(_scores)


def _dropout(x, rng):
    return jnp.where(jax.random.bernoulli(rng, 1 - DROPOUT, x.shape), x / (1 - DROPOUT), 0)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _step(parameters, state, tokens, heads, rng, rate):
    import optax

    def loss(parameters):
        nats = optax.softmax_cross_entropy_with_integer_labels(_scores(parameters, tokens, rng), heads + 1)
        return jnp.where(tokens >= 0, nats, 0).sum() / (tokens >= 0).sum()

    directions, state = optax.scale_by_adam().update(jax.grad(loss)(parameters), state)
    return optax.apply_updates(parameters, jax.tree.map(lambda x: -rate * x, directions)), state


def _by_length(sentences):
    """{padded length: rows of the sentences that are padded to it}."""
    rows = {}
    for row, (tokens, *_) in enumerate(sentences):
        rows.setdefault(max(LENGTHS[0], 1 << (len(tokens) - 1).bit_length()), []).append(row)
    return dict(sorted(rows.items()))


def _padded(sentences, length):
    """(tokens, heads) int32 [rows, length] twice; tokens are padded with -1, heads with 0."""
    tokens, heads = np.full((len(sentences), length), -1, np.int32), np.zeros((len(sentences), length), np.int32)
    for row, (words, above) in enumerate(sentences):
        tokens[row, : len(words)], heads[row, : len(words)] = words, above
    return tokens, heads
