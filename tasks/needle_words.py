"""Words that come often: rows of tokens that must be counted, and the most frequent ones named at the end.

`cwe`, common words, and `fwe`, frequent words, of Hsieh et al. 2024, "RULER: What's the Real Context Size of Your
Long-Context Language Models?", arXiv:2404.06654, section 3, with a token for each word. Token 0 asks, token 1 is the
noise of `fwe`, the others are the words. The published score takes a set; a decoder that is told the answers so far
(teacher forcing) needs an order, which each kind states.
"""

import itertools

import numpy as np

from tasks.recall_rows import Kind, asked_at_the_end, different, in_random_order

QUERY, DOTS, FIRST_WORD = 0, 1, 2
COMMON = 10  # words that `cwe` asks for
REPEATS = 30, 3  # of a common and of another word
SHORT, SHORT_REPEATS = 4096, (6, 1)  # of rows with less than so many tokens
FREQUENT = 3  # words that `fwe` asks for
ALPHA = 2.0  # the exponent of its Zipf distribution
ZETA = np.pi**2 / 6  # Riemann's zeta(ALPHA), the sum of k^-ALPHA over k = 1, 2, ...


def draw_common(rng, rows, length, data):
    """A shuffled list in which ten words come more often than all others: which ten?

    As in the published code common words come 30 times and others 3 times, below 4,096 tokens 6 times and once, and
    longer rows have more different words. Where the vocabulary has not that many, both counts are multiplied by the
    smallest whole number that makes the words suffice; what is too little for one more word goes to one that comes
    less often. The answer gives the common words in the order in which they first come.

    Args:
      rng: `np.random.Generator`.
      rows: how many sequences.
      length: T: the list, the token that asks, and nine of the answers.
      data: `vocabulary` V, of which V - 2 are words.

    Returns:
      `Rows`, with ten questions each, at the last ten places; no `depth`.
    """
    repeats = _common_repeats(data, length)
    words = FIRST_WORD + different(rng, rows, data.vocabulary - FIRST_WORD, len(repeats))
    shuffled = _shuffled(rng, rows, repeats)
    first = np.stack([(shuffled == word).argmax(1) for word in range(COMMON)], axis=1)
    answers = np.take_along_axis(words, first.argsort(1), axis=1)
    return _asking(np.take_along_axis(words, shuffled, axis=1), answers)


def draw_frequent(rng, rows, length, data):
    """Coded text whose words follow Zipf's law with exponent 2: which three are the most frequent?

    Of N words of text the one of rank k = 1, 2, ... makes floor(N k^-2 / zeta(2)). As in the published code rank 1 is
    noise, dots that are to be ignored, and ranks 2, 3 and 4 are asked for; here noise also fills up what the floors
    leave. Words are as many as come at least once, if the vocabulary has them: the published limit, one for 50 tokens,
    allows more than that. The answer gives the three by falling frequency.

    Args:
      rng: `np.random.Generator`.
      rows: how many sequences.
      length: T: the text, the token that asks, and two of the answers.
      data: `vocabulary` V, of which V - 2 are words.

    Returns:
      `Rows`, with three questions each, at the last three places; no `depth`.
    """
    repeats = _frequent_repeats(data, length)
    words = FIRST_WORD + different(rng, rows, data.vocabulary - FIRST_WORD, len(repeats) - 1)
    text = np.concatenate([np.full((rows, 1), DOTS), words], axis=1)
    return _asking(np.take_along_axis(text, _shuffled(rng, rows, repeats), axis=1), words[:, :FREQUENT])


def _shuffled(rng, rows, repeats):
    """int [rows, sum(repeats)]: number i as often as repeats[i] says, in random order."""
    ranks = np.repeat(np.arange(len(repeats)), repeats)
    return rng.permuted(np.broadcast_to(ranks, (rows, len(ranks))), axis=1)


def _asking(words, answers):
    return asked_at_the_end(np.pad(words, ((0, 0), (0, 1)), constant_values=QUERY), answers)


def _common_repeats(data, length):
    """How often each word comes, the common ones first."""
    size = length - COMMON
    common, other = REPEATS if length >= SHORT else SHORT_REPEATS
    others = data.vocabulary - FIRST_WORD - COMMON
    times = -(-size // (COMMON * common + others * other))
    whole, rest = divmod(size - COMMON * common * times, other * times)
    return [common * times] * COMMON + [other * times] * whole + [rest] * (rest > 0)


def _frequent_repeats(data, length):
    """How often each rank comes, the noise first."""
    repeats = _zipf(length, np.arange(2, data.vocabulary - FIRST_WORD + 2))
    repeats = repeats[repeats > 0]
    return [length - FREQUENT - repeats.sum(), *repeats]


def _zipf(length, ranks):
    return ((length - FREQUENT) * ranks**-ALPHA / ZETA).astype(int)


def _least_common(data):
    return COMMON + COMMON * SHORT_REPEATS[0] + 1  # and one word that is not common


def _common_tokens(data):
    """As many other words as all common ones have places: with fewer, some lengths fit no multiple of the counts."""
    return FIRST_WORD + COMMON + COMMON * SHORT_REPEATS[0]


def _least_frequent(data):
    """Four words with different counts, so that there is one that is not asked for and the order is sure."""
    return next(length for length in itertools.count(FREQUENT) if _tells_apart(length))


def _tells_apart(length):
    """Whether ranks 2 to 5 differ and come; it is of no matter how many words the vocabulary has."""
    counts = set(_zipf(length, np.arange(2, FREQUENT + 3)))
    return len(counts) == FREQUENT + 1 and 0 not in counts


def _common_baselines(data, length):
    """Who knows which words are common, and guesses which of those that are left is the next, gets the last share."""
    repeats = _common_repeats(data, length)
    return {
        "any word": 1 / (data.vocabulary - FIRST_WORD),
        "one of the row's words": 1 / len(repeats),
        "word at one of the row's places": repeats[0] / sum(repeats),
        "common words in random order": in_random_order(COMMON),
    }


def _frequent_baselines(data, length):
    repeats = _frequent_repeats(data, length)[1:]
    return {
        "any word": 1 / (data.vocabulary - FIRST_WORD),
        "one of the row's words": 1 / len(repeats),
        "word at one of the row's places": float(sum(repeats[:FREQUENT]) / FREQUENT / sum(repeats)),
        "always the most frequent word": 1 / FREQUENT,
        "frequent words in random order": in_random_order(FREQUENT),
    }


KINDS = {
    "cwe": Kind(draw_common, _least_common, _common_baselines, tokens=_common_tokens),
    "fwe": Kind(draw_frequent, _least_frequent, _frequent_baselines, tokens=lambda data: FIRST_WORD + FREQUENT + 1),
}
