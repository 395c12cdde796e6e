"""Subject and verb agree in number: which verbs a treebank lets one ask about, and what simple rules answer.

Linzen et al. 2016, "Assessing the Ability of LSTMs to Learn Syntax-Sensitive Dependencies", arXiv:1611.01368: words of
the other number between subject and verb, "attractors", as in "the keys to the cabinet are", mislead whoever goes by
the nearest noun.
"""

from typing import NamedTuple

NUMBERS = ("Sing", "Plur")
NOUNS = ("NOUN", "PROPN", "PRON")
VERBS = ("VERB", "AUX")


class Question(NamedTuple):
    """A verb whose number is asked for.

    Attributes:
      verb: its index.
      subject: index of its subject.
      number: index in `NUMBERS`, the answer.
      attractors: how many nouns, names and pronouns of the other number stand between the two; those joined to the
        subject, as "B" in "A and B are", are part of it and do not count.
    """

    verb: int
    subject: int
    number: int
    attractors: int

    @property
    def distance(self):
        """How many words the verb is away from its subject, on whichever side: 1 for the next one."""
        return abs(self.verb - self.subject)


def questions(words):
    """The questions about a sentence.

    Asked is a verb or auxiliary that is finite (`VerbForm=Fin`, or a `Mood` where the treebank marks no form), whose
    `Number` is Sing or Plur, which is in the third person where the treebank marks `Person` (the subjects of the others
    are the few pronouns "I", "you", "we", which give the answer by themselves), and which has exactly one subject: one
    dependent by nsubj or a subtype of it, of the verb or, if this is an auxiliary or copula, of its head. The number is
    the treebank's, which may also mark verbs whose form shows none: English-EWT does so in the past tense ("walked").

    Args:
      words: `tasks.conllu.Word`s of a sentence.

    Returns:
      A list of `Question`.
    """
    subjects = {}
    for index, word in enumerate(words):
        if word.relation == "nsubj":
            subjects.setdefault(word.head, []).append(index)
    found = []
    for verb, word in enumerate(words):
        clause = word.head if word.relation in ("aux", "cop") else verb
        if _asked(word) and len(subjects.get(clause, ())) == 1:
            [subject] = subjects[clause]
            number = NUMBERS.index(word.feats["Number"])
            first, last = sorted((verb, subject))
            between = [noun for noun in range(first + 1, last) if not _joined(words, noun, subject)]
            attractors = sum(number_of_noun(words[noun]) == 1 - number for noun in between)
            found.append(Question(verb, subject, number, attractors))
    return found


def nearest_noun(words, question, default):
    """The number of the last noun, name or pronoun before the verb that has one, `default` without any."""
    before = (number_of_noun(word) for word in reversed(words[: question.verb]))
    return next((number for number in before if number is not None), default)


def of_subject(words, question, default):
    """The number of the subject, which takes the tree and its labels to find, `default` if it has none ("who")."""
    number = words[question.subject].feats.get("Number")
    return NUMBERS.index(number) if number in NUMBERS else default


def number_of_noun(word):
    """Index in `NUMBERS` of the number of a noun, name or pronoun; None without one, and for other words."""
    number = word.feats.get("Number")
    return NUMBERS.index(number) if word.upos in NOUNS and number in NUMBERS else None


def _joined(words, index, subject):
    """Whether a word is one of several subjects: it hangs on the subject by conj, directly or through others."""
    while words[index].relation == "conj":
        index = words[index].head
    return index == subject


def _asked(word):
    feats = word.feats
    finite = feats.get("VerbForm", "Fin" if "Mood" in feats else "") == "Fin"
    return word.upos in VERBS and finite and feats.get("Number") in NUMBERS and feats.get("Person", "3") == "3"
