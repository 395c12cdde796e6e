"""CoNLL-U, the format of Universal Dependencies, read in full: one record a word, and every fault with its line.

A sentence is some comments, one line of ten tab-separated columns for each word, and a blank line
(universaldependencies.org/format.html; Nivre et al. 2020, "Universal Dependencies v2", arXiv:2004.10643):

    ID  FORM  LEMMA  UPOS  XPOS  FEATS  HEAD  DEPREL  DEPS  MISC

Beside words 1, 2, 3, ... there are multiword tokens ("3-4", what is written as one and read as words 3 and 4, as in
"don't") and empty nodes ("5.1", a word left out after word 5, which only DEPS refers to). The tree joins the words.
"""

import dataclasses
import functools
import re
import reprlib
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

COLUMNS = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
WRITTEN = ("ID", "FORM", "LEMMA", "MISC")  # columns that may hold spaces
NUMBER = re.compile(r"[0-9]{1,9}")  # more digits are none that a sentence has words for
ID = re.compile(r"(N)|(N)-(N)|(0|N)\.(N)".replace("N", "[1-9][0-9]{0,8}"))


class Word(NamedTuple):
    """A syntactic word; what the treebank leaves open ("_") is "".

    Attributes:
      form: as written.
      lemma: its dictionary form.
      upos: universal part of speech, such as "NOUN".
      xpos: the treebank's own part of speech.
      feats: {feature: value}, such as {"Number": "Sing"}; read-only, one for all words that have the same.
      head: index of the word it depends on, from 0; -1 for the root.
      deprel: relation to the head with its subtype, such as "nsubj:pass".
      deps: edges of the enhanced graph, as text.
      misc: anything else, as text.
    """

    form: str
    lemma: str
    upos: str
    xpos: str
    feats: MappingProxyType
    head: int
    deprel: str
    deps: str
    misc: str

    @property
    def relation(self):
        """The universal part of `deprel`: "nsubj" of "nsubj:pass"."""
        return self.deprel.partition(":")[0]


class Multiword(NamedTuple):
    """Words `first` to `last`, indices from 0, both inclusive, that are written as the one token `form`."""

    first: int
    last: int
    form: str
    misc: str


class Empty(NamedTuple):
    """A word left out: the `number`-th one after the word of index `after`, -1 before the first; `word.head` is -1."""

    after: int
    number: int
    word: Word


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence and its tree.

    Attributes:
      words: its `Word`s, in order.
      multiwords: its `Multiword`s.
      empties: its `Empty` nodes.
      comments: the lines before it, without "#".
      line: number of its first word's line, from 1.
    """

    words: tuple[Word, ...]
    multiwords: tuple[Multiword, ...]
    empties: tuple[Empty, ...]
    comments: tuple[str, ...]
    line: int

    def comment(self, name):
        """The value of the comment `# name = value`, "" without one; `sent_id` and `text` are on every sentence of UD.

        >>> Sentence((), (), (), (" sent_id = a-1",), 1).comment("sent_id")
        'a-1'
        """
        found = (line.partition("=") for line in self.comments)
        return next((value.strip() for key, equals, value in found if equals and key.strip() == name), "")


def read(path):
    """The sentences of a file.

    Args:
      path: of a .conllu file, UTF-8.

    Returns:
      A list of `Sentence`.

    Raises:
      ValueError: what `parse` refuses, or bytes that are not UTF-8.
      OSError: the file cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise ValueError(
            f"{path}:{line}: wanted UTF-8, got the byte {data[error.start]:#04x}; save it as UTF-8"
        ) from None
    return parse(text, path)


def parse(text, name="text"):
    r"""The sentences of a text.

    Args:
      text: CoNLL-U; lines end in LF or CRLF, the last blank line may be missing.
      name: of the file, for messages.

    Returns:
      A list of `Sentence`.

    Raises:
      ValueError: "NAME:LINE: what is wrong": other than 10 columns, an empty one, ids out of order, a head that is no
        word, several roots or none, a root that is not called so, a cycle, a feature without a value, comments inside
        or without a sentence.

    >>> [sentence] = parse("# text = Dogs bark\n1\tDogs\tdog\tNOUN\tNNS\tNumber=Plur\t2\tnsubj\t_\t_\n"
    ...                    "2\tbark\tbark\tVERB\tVBP\t_\t0\troot\t_\t_\n\n")
    >>> [(word.form, word.head, word.relation) for word in sentence.words], sentence.comment("text")
    ([('Dogs', 1, 'nsubj'), ('bark', -1, 'root')], 'Dogs bark')
    """
    sentences, comments, rows, number = [], [], [], 0
    for number, line in enumerate([*text.split("\n"), ""], 1):  # not splitlines: a form may hold U+2028 or U+0085
        line = line.removesuffix("\r")
        try:
            if line.startswith("#"):
                _want(not rows, "a comment inside a sentence; move it before the first word")
                comments.append(line[1:])
            elif line:
                rows.append((number, _columns(line)))
            elif rows:
                sentences.append(_sentence(rows, comments))
                comments, rows = [], []
            else:
                _want(not comments, "a blank line after comments; a sentence begins right after them")
        except _Fault as fault:
            raise ValueError(f"{name}:{fault.line or number}: {fault}") from None
    return sentences


class _Fault(ValueError):
    """What is wrong, and the line if it is not the one just read."""

    def __init__(self, message, line=None):
        super().__init__(message)
        self.line = line


def _want(good, message, line=None):
    if not good:
        raise _Fault(message, line)


def _columns(line):
    columns = line.split("\t")
    _want(len(columns) == 10, f"wanted 10 columns with tabs between them, got {len(columns)}")
    if "" in columns or " " in line:
        for column, value in zip(COLUMNS, columns, strict=True):
            _want(value, f"{column} is empty; write _")
            _want(column in WRITTEN or " " not in value, f"{column}: wanted no space, got {value!r}")
    return columns


def _sentence(rows, comments):
    """A `Sentence` from its (line number, columns)."""
    words, multiwords, empties, lines = [], [], [], []
    for line, columns in rows:
        try:
            match = ID.fullmatch(columns[0])
            if not match:
                raise _Fault(f"ID: wanted such as 3, 3-4 or 3.1, got {reprlib.repr(columns[0])}")
            if match[1]:
                _want(int(match[1]) == len(words) + 1, f"ID: wanted {len(words) + 1}, got {columns[0]}")
                words.append(_word(columns, columns[6]))
                _check_root(words[-1])
                lines.append(line)
            elif match[2]:
                multiwords.append(_multiword(columns, int(match[2]), int(match[3]), len(words), multiwords))
            else:
                empties.append(_empty(columns, int(match[4]), int(match[5]), len(words), empties))
        except _Fault as fault:
            raise _Fault(str(fault), line) from None
    _want(words, "a sentence without words", rows[0][0])
    if multiwords:
        first, last, *_ = multiwords[-1]
        _want(last < len(words), f"ID: {first + 1}-{last + 1} ends after the last word", lines[-1])
    _check_tree([word.head for word in words], lines)
    return Sentence(tuple(words), tuple(multiwords), tuple(empties), tuple(comments), lines[0])


def _word(columns, head):
    _, form, lemma, upos, xpos, feats, _, deprel, deps, misc = columns
    if not NUMBER.fullmatch(head):
        raise _Fault(f"HEAD: wanted the ID of a word, or 0 for the root, got {reprlib.repr(head)}")
    rest = ("" if value == "_" else value for value in (upos, xpos))
    lemma = "" if lemma == "_" != form else lemma  # the lemma of an underscore is an underscore
    kept = ("" if value == "_" else value for value in (deprel, deps, misc))
    return Word(form, lemma, *rest, features(feats), int(head) - 1, *kept)


def _multiword(columns, first, last, count, before):
    _want(first == count + 1, f"ID: {columns[0]} stands before word {count + 1}; put it before word {first}")
    _want(first <= last, f"ID: wanted first-last, got {columns[0]}")
    overlaps = before and first <= before[-1].last + 1
    _want(not overlaps, f"ID: {columns[0]} shares words with the token before it")
    return Multiword(first - 1, last - 1, columns[1], "" if columns[9] == "_" else columns[9])


def _empty(columns, after, number, count, before):
    wanted = before[-1].number + 1 if before and before[-1].after == count - 1 else 1
    _want((after, number) == (count, wanted), f"ID: wanted {count}.{wanted}, got {columns[0]}")
    _want(columns[6] == "_", f"HEAD: wanted _ for an empty node, which only DEPS joins, got {reprlib.repr(columns[6])}")
    return Empty(after - 1, number, _word(columns, "0"))


@functools.cache  # a treebank has some hundred bundles, on every word one
def features(column):
    """The FEATS column as a read-only mapping; ValueError if it is none.

    >>> dict(features("Number=Sing|Person=3")), dict(features("_"))
    ({'Number': 'Sing', 'Person': '3'}, {})
    """
    found = {}
    for item in [] if column == "_" else column.split("|"):
        name, _, value = item.partition("=")
        _want(name and value, f"FEATS: wanted NAME=VALUE with | between, got {item!r}")
        _want(name not in found, f"FEATS: {name} stands twice")
        found[name] = value
    return MappingProxyType(found)


def _check_root(word):
    """The relation of the root is root, and that of no other word."""
    if (word.head < 0) != (word.relation == "root"):
        got = f"{reprlib.repr(word.deprel)} with HEAD {word.head + 1}"
        raise _Fault(f"DEPREL: root stands with HEAD 0 and nowhere else, got {got}")


def _check_tree(heads, lines):
    """One root, heads that are words, and from every word a way up to the root."""
    for head, line in zip(heads, lines, strict=True):
        _want(head < len(heads), f"HEAD: wanted at most {len(heads)}, got {head + 1}", line)
    roots = [index for index, head in enumerate(heads) if head < 0]
    _want(roots, "HEAD: no word has 0, and the tree wants a root", lines[0])
    _want(len(roots) == 1, f"HEAD: word {roots[-1] + 1} is a second root beside word {roots[0] + 1}", lines[roots[-1]])
    settled = set(roots)
    for index in range(len(heads)):
        path = set()
        while index not in settled:
            _want(index not in path, f"HEAD: word {index + 1} depends, through others, on itself", lines[index])
            path.add(index)
            index = heads[index]
        settled |= path
