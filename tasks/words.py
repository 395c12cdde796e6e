"""Words as tokens: a number for each frequent word, and for all others one for what they look like, in any language."""

import collections
import dataclasses

MASK = 0  # the token that hides a word
UNKNOWN = 1  # a word that looks like none before
WORDS, SIGNATURES = 1022, 1024  # at most so many; together with the two above 2048
VOCABULARY = 2 + WORDS + SIGNATURES
FREQUENT = 3  # a word seen less often is known by its looks, so that the looks are learnt
ENDING = 3  # last letters of a word that its signature holds, fewer where so many are too rare


@dataclasses.dataclass(frozen=True)
class Words:
    """Which token stands for which word.

    Attributes:
      tokens: {word: token} of the frequent words, and {signature: token} of the rest.
    """

    tokens: dict[str, int]

    def __getitem__(self, form):
        """The token of a word: its own, that of its lower case, or that of its longest known signature.

        >>> words = Words.of(["the"] * 3 + ["walks", "talks", "balks", "Chalks"])
        >>> words["The"] == words["the"], words["stalks"] == words["walks"] != words["Walks"], words["?"]
        (True, True, 1)
        """
        names = (form, form.lower(), *signatures(form))
        return next((self.tokens[name] for name in names if name in self.tokens), UNKNOWN)

    def looks(self, form):
        """The token that a word would have if it were rare: that of its longest known signature."""
        return next((self.tokens[name] for name in signatures(form) if name in self.tokens), UNKNOWN)

    @classmethod
    def of(cls, forms):
        """The vocabulary of a training text, the same for the same words in whatever order.

        Args:
          forms: its words.
        """
        counts = collections.Counter(forms)
        frequent = _most(counts, WORDS)
        rare = collections.Counter()
        for form, count in counts.items():
            if form not in frequent and form.lower() not in frequent:
                rare.update(dict.fromkeys(signatures(form), count))
        names = [*frequent, *_most(rare, SIGNATURES)]
        return cls({name: token for token, name in enumerate(names, UNKNOWN + 1)})


def signatures(form):
    r"""What a word looks like, from the closest description to the widest; none is a word, for all begin with a tab.

    Its case and whether it holds a digit or a hyphen, then its last letters (those of a number say nothing). The idea
    is that of Petrov et al. 2006, "Learning Accurate, Compact, and Interpretable Tree Annotation", whose parser knows
    rare words by such signatures.

    >>> signatures("Re-runs"), signatures("1984")
    (['\tXx-uns', '\tXx-ns', '\tXx-s', '\tXx-'], ['\t0'])
    """
    case = "X" if form.isupper() else "x" if form.islower() else "Xx" if form[:1].isupper() else ""
    digit = any(character.isdigit() for character in form)
    looks = "\t" + case + "0" * digit + "-" * ("-" in form.strip("-"))
    longest = 0 if digit else min(ENDING, len(form) - 1)
    return [looks + form[len(form) - size :].lower() for size in range(longest, -1, -1)]


def _most(counts, limit):
    """The most frequent names, in order of frequency, then of the alphabet."""
    ranked = sorted((name for name, count in counts.items() if count >= FREQUENT), key=lambda x: (-counts[x], x))
    return dict.fromkeys(ranked[:limit])
