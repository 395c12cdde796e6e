"""Link prediction: which entity completes a fact of a knowledge graph, judged by its filtered rank among all entities.

A fact is a triple (subject, relation, object). Both of its ends are asked for: (subject, relation, ?) and, by the
inverse relation, (object, relation^-1, ?). The metric is the mean reciprocal rank of the right answer, without the
other answers known to be right (Bordes et al. 2013, "Translating Embeddings for Modeling Multi-relational Data",
section 4.2); answers scored alike share the mean of their ranks, so that a model that scores all alike gains nothing
(Sun et al. 2020, "A Re-evaluation of Knowledge Graph Completion Methods", arXiv:1911.03903).
"""

import dataclasses
import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from models.edges import Edges
from tasks.questions import Answers, asked_both_ways
from tasks.source import check_read, source_of
from tasks.text import cross_entropy
from tasks.triple_files import SPLITS, kinship, read_folder, read_wn18rr

METRIC = {"name": "validation filtered MRR", "higher_is_better": True}
MODELS = ("link_prediction",)
VOCABULARY = 0  # entities are no tokens
DATA = ("name", "path", "dir", "questions")
SIZE, UNIT = "questions", "questions"
ORDER = 1  # last word of Philox's counter for the order of an epoch
CHUNK = 16  # questions that the baselines answer at once
HITS = (1, 3, 10)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A knowledge graph, its facts in three parts; entities and relations are numbers.

    Attributes:
      entities: their names.
      relations: their names; relation r + len(relations) is the inverse of r.
      train: int32 [facts, 3], subject, relation, object: what the graph consists of.
      development: likewise, looked at on the way.
      test: likewise, judged.
      sha256: fingerprint of all this.
    """

    entities: tuple[str, ...]
    relations: tuple[str, ...]
    train: np.ndarray
    development: np.ndarray
    test: np.ndarray
    sha256: str

    @functools.cached_property
    def edges(self):
        """int32 [E, 3]: the training facts, and after them their inverses."""
        return asked_both_ways(self.train, len(self.relations))

    @functools.cached_property
    def train_answers(self):
        """What is true by the training facts alone."""
        return Answers.of(self.edges)

    @functools.cached_property
    def all_answers(self):
        """What is true by any fact, which is what a judgement filters."""
        facts = np.concatenate([self.train, self.development, self.test])
        return Answers.of(asked_both_ways(facts, len(self.relations)))


def load(config) -> Corpus:
    """Reads the knowledge graph that `config.data` names.

    Args:
      config: `name` ("kinship", generated, or "wn18rr"), `path` (a folder of the user's own with train.txt, valid.txt
        and test.txt; non-empty replaces the default source), `dir` (folder that holds the published data sets),
        `questions` asked of the graph at once.

    Returns:
      The corpus, the same for the same files.

    Raises:
      ValueError: unknown source, settings that it does not take, a fault in a file, which is named with its line.
      OSError: a file that is missing or cannot be read.
    """
    source = source_of(config, SOURCES, "kinship")
    check_read(config, source, ("path", "dir"), {"path": ("path",), "wn18rr": ("dir",)}.get(source, ()))
    return corpus_of(SOURCES[source](config))


def corpus_of(facts) -> Corpus:
    """Numbers the names in {split: [(subject, relation, object), ...]}, each in alphabetical order."""
    everything = [fact for split in SPLITS for fact in facts[split]]
    entities = sorted({name for subject, _, object in everything for name in (subject, object)})
    relations = sorted({relation for _, relation, _ in everything})
    number, kind = ({name: i for i, name in enumerate(names)} for names in (entities, relations))
    parts = [
        np.array([(number[s], kind[r], number[o]) for s, r, o in facts[split]], np.int32).reshape(-1, 3)
        for split in SPLITS
    ]
    digest = hashlib.sha256("\n".join([*entities, "", *relations]).encode())
    for part in parts:
        digest.update(part.tobytes())
    return Corpus(tuple(entities), tuple(relations), *parts, digest.hexdigest())


SOURCES = {
    "kinship": lambda config: kinship(),
    "path": lambda config: read_folder(config.path),
    "wn18rr": lambda config: read_wn18rr(config.dir),
}


def describe(corpus, length):
    """What `data.json` keeps of a corpus: its fingerprint, sizes, and baselines on the judged questions."""
    seen = np.zeros(len(corpus.entities), bool)
    seen[corpus.train[:, [0, 2]]] = True
    return {
        "sha256": corpus.sha256,
        "entities": len(corpus.entities),
        "relations": list(corpus.relations),
        "train_facts": len(corpus.train),
        "development_facts": len(corpus.development),
        "validation_facts": len(corpus.test),
        "validation_facts_of_unseen_entities": int((~seen[corpus.test[:, [0, 2]]]).any(1).sum()),
        "validation_examples": len(validation(corpus, length)[1]),
        "pieces": f"draws of {length} questions",
        "baselines": baselines(corpus),
    }


def fields(corpus):
    """The model has a vector for each entity, and for each relation and its inverse."""
    return {"model.num_entities": len(corpus.entities), "model.num_relations": len(corpus.relations)}


def tokens(length):
    """Questions of a row, which are what speed is counted in."""
    return length


def batch(corpus, seed, step, batch_size, length):
    """Questions from the training facts in random order, each once an epoch; a pure function of (seed, step).

    The facts that a row asks about are hidden from its graph, both ways: an encoder would read the answer off the very
    edge that it is asked for, and find none there when it is judged. The rest of the graph stays, also an edge that
    goes back (b similar_to a, where a similar_to b is asked): the judged facts have such edges, too.

    Returns:
      {"senders", "receivers", "relations" int32 [batch_size, E], "edge_mask" bool [batch_size, E]}, the training facts
      and after them their inverses, and the questions: {"subjects", "relations_asked", "answers" int32
      [batch_size, length], "known" int32 [batch_size, length, K], other right answers, -1 = none}.
    """
    facts = corpus.edges
    epochs, places = np.divmod(step * batch_size * length + np.arange(batch_size * length), len(facts))
    rows = np.empty(len(places), np.int64)
    for epoch in np.unique(epochs):
        rows[epochs == epoch] = _order(seed, int(epoch), len(facts))[places[epochs == epoch]]
    rows = rows.reshape(batch_size, length)
    mask = np.ones((batch_size, len(facts)), bool)
    each = np.arange(batch_size)[:, None]
    mask[each, rows] = mask[each, (rows + len(corpus.train)) % len(facts)] = False
    known = corpus.train_answers.others(facts[rows.ravel()], corpus.train_answers.most)
    return _graph(facts, batch_size) | {"edge_mask": mask} | _questions(facts[rows], known)


def validation(corpus, length):
    """Both questions about every test fact, over the whole graph of the training facts.

    Returns:
      (as `batch`, with rows of `length` questions in a random order that is always the same; the last is filled up
      with answers of -1, which do not count; owners [rows]: each row, a random draw of questions, is a piece).
    """
    return _examples(corpus, corpus.test, length)


def development(corpus, length):
    """Likewise about the development facts: what training looks at on the way."""
    return _examples(corpus, corpus.development, length)


def score(model, examples, rng=None):
    """Nats, questions, reciprocal ranks and again questions of each row.

    loss = - log softmax(scores over all entities)[answer]    (1-vs-all: Lacroix et al. 2018, arXiv:1806.07297)
    """
    answers = examples["answers"]
    asked = answers >= 0
    scores = model(edges_of(examples), examples["subjects"], examples["relations_asked"], rng=rng)
    targets = jnp.maximum(answers, 0)
    loss = jnp.where(asked, cross_entropy(scores, targets), 0).sum(1)
    metric = jnp.where(asked, 1 / filtered_ranks(scores, targets, examples["known"]), 0).sum(1)
    count = asked.sum(1, dtype=jnp.float32)
    return loss, count, metric, count


def edges_of(examples):
    """The graph of each row, as a model takes it."""
    return Edges(*(examples[name] for name in ("senders", "receivers", "relations", "edge_mask")))


def filtered_ranks(scores, answers, known):
    """The rank of each answer among all entities but the others that are right, too; ties share their mean rank.

    rank = 1 + sum over the others e of ([not score_e <= score_answer] + [not score_e < score_answer]) / 2

    A tie adds 1/2. So said, what is no number (NaN) beats an answer, and an answer that is none ranks last.

    Args:
      scores: float [..., V].
      answers: int [...].
      known: int [..., K], other right answers, which are not counted; -1 = none.

    Returns:
      float32 [...].

    >>> filtered_ranks(jnp.array([[4.0, 3.0, 2.0, 2.0, 1.0]]), jnp.array([2]), jnp.array([[0, -1]])).tolist()
    [2.5]
    """
    own = jnp.take_along_axis(scores, answers[..., None], -1)
    others = jnp.take_along_axis(scores, jnp.maximum(known, 0), -1)
    # Whole numbers: XLA on a CPU sums them twice as fast as truth values and floats, in whose order it is bound.
    beats = lambda x: 2 - (x <= own).astype(jnp.int32) - (x < own)  # noqa: E731
    halves = beats(scores).sum(-1) - beats(own)[..., 0] - jnp.where(known >= 0, beats(others), 0).sum(-1)
    return 1 + halves.astype(jnp.float32) / 2


def details(model, corpus, length):
    """Further numbers of a model on the judged questions.

    Returns:
      {"Hits@1", "Hits@3", "Hits@10": the share of answers with at most that rank; "MRR of subjects", "MRR of objects";
      "MRR of RELATION", both ways, for each relation that is asked about}.
    """
    examples, _ = validation(corpus, length)
    ranks, kinds = judged_ranks(model, examples), examples["relations_asked"][examples["answers"] >= 0]
    found = {f"Hits@{k}": ranks <= k for k in HITS}
    inverse, kinds = np.divmod(kinds, len(corpus.relations))
    chosen = {"subjects": inverse == 1, "objects": inverse == 0}
    chosen |= {corpus.relations[kind]: kinds == kind for kind in np.unique(kinds)}
    means = {f"MRR of {name}": 1 / ranks[rows] for name, rows in chosen.items()}
    return {name: float(values.mean()) for name, values in (found | means).items()}


def judged_ranks(model, examples):
    """The filtered rank of each question that is asked, float32 [questions]; rows share one graph, encoded once."""
    first = {name: array[:1] for name, array in examples.items()}
    entities = model.encode(edges_of(first))

    def row(one):
        scores = model.answer(entities, one["subjects"][None], one["relations_asked"][None])[0]
        return filtered_ranks(scores, jnp.maximum(one["answers"], 0), one["known"])

    asked = ("subjects", "relations_asked", "answers", "known")
    ranks = jax.lax.map(row, {name: jnp.asarray(examples[name]) for name in asked})
    return np.asarray(ranks)[examples["answers"] >= 0]


def baselines(corpus):
    """Filtered MRR of three rules without a network, on exactly the questions the variants are judged on.

    "frequency" prefers what answers the relation most often in training, whatever the subject. "symmetry" prefers e
    where (e, relation, subject) is a training fact, "neighbours" where any training fact links e and the subject, by
    the number of them; both are "frequency" for the rest.
    """
    count, entities = len(corpus.relations), len(corpus.entities)
    facts, asked = corpus.edges, asked_both_ways(corpus.test, count)
    known = corpus.all_answers.others(asked)
    answered = np.zeros((2 * count, entities), np.float32)
    np.add.at(answered, (facts[:, 1], facts[:, 2]), 1)
    answered /= 1 + answered.max()  # below 1: decides where nothing else does
    symmetric = Answers.of(np.stack([facts[:, 2], facts[:, 1], facts[:, 0]], 1))
    linked = Answers.of(np.stack([facts[:, 0], np.zeros_like(facts[:, 1]), facts[:, 2]], 1))
    rank, ranks = jax.jit(filtered_ranks), {"frequency": [], "symmetry": [], "neighbours": []}
    for start in range(0, len(asked), CHUNK):
        rows = (start + np.arange(CHUNK)) % len(asked)  # one shape, so that it compiles once
        kept = min(CHUNK, len(asked) - start)
        often = answered[asked[rows, 1]]
        scores = {
            "frequency": often,
            "symmetry": often + symmetric.counts(asked[rows], entities),
            "neighbours": often + linked.counts(asked[rows] * [1, 0, 1], entities),
        }
        for name, found in scores.items():
            ranks[name].append(np.asarray(rank(found, asked[rows, 2], known[rows]))[:kept])
    return {name: float((1 / np.concatenate(found)).mean()) for name, found in ranks.items()}


def _examples(corpus, facts, length):
    """Both questions about each of these facts, in rows of `length`, over the whole graph."""
    asked = asked_both_ways(facts, len(corpus.relations))
    asked = asked[np.random.default_rng(0).permutation(len(asked))]
    rows = -(-len(asked) // length)
    known = corpus.all_answers.others(asked)
    gaps = ((0, rows * length - len(asked)), (0, 0))
    asked = np.pad(asked, gaps)
    asked[len(asked) + gaps[0][0] - gaps[0][1] :, 2] = -1
    known = np.pad(known, gaps, constant_values=-1)
    mask = np.ones((rows, len(corpus.edges)), bool)
    questions = _questions(asked.reshape(rows, length, 3), known)
    return _graph(corpus.edges, rows) | {"edge_mask": mask} | questions, np.arange(rows)


def _graph(facts, rows):
    """The edges of `rows` equal graphs, without copies."""
    senders, relations, receivers = (np.broadcast_to(column, (rows, len(facts))) for column in facts.T)
    return {"senders": senders, "receivers": receivers, "relations": relations}


def _questions(facts, known):
    """Facts [rows, length, 3] as questions, with the other answers [rows * length, K] to each."""
    names = ("subjects", "relations_asked", "answers")
    return dict(zip(names, np.moveaxis(facts, -1, 0), strict=True)) | {"known": known.reshape(*facts.shape[:2], -1)}


@functools.lru_cache(maxsize=8)
def _order(seed, epoch, count):
    """The order of `count` questions in an epoch; a pure function, kept because every step of the epoch asks for it."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, ORDER])).permutation(count)
