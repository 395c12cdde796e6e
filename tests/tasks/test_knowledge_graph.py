"""Knowledge graphs: triple files and their faults, kinship by its rules, hidden edges, filtered ranks by hand."""

import hashlib
import io
import subprocess
import sys
import tarfile

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks import knowledge_graph, triple_files
from tasks.knowledge_graph import filtered_ranks
from tasks.questions import Answers, asked_both_ways

FACTS = {
    "train.txt": "01\tlikes\t02\n02\tlikes\t03\n01\tknows\t03\n03\tknows\t04\n04\tlikes\t01\n",
    "valid.txt": "01\tlikes\t03\n",
    "test.txt": "01\tlikes\t04\r\n04\tknows\t1\r\n",  # entity "1" is not "01"
}
COUNT = 4  # entities of the training facts


def data_config(**changes):
    return ConfigDict({"name": "kinship", "path": "", "dir": "", "questions": 7} | changes)


def write(folder, **changes):
    folder.mkdir(exist_ok=True)
    for name, text in (FACTS | {f"{key}.txt": text for key, text in changes.items()}).items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder)


def of(folder, **changes):
    return knowledge_graph.load(data_config(path=write(folder, **changes)))


def named(corpus, facts):
    return [(corpus.entities[s], corpus.relations[r], corpus.entities[o]) for s, r, o in facts]


class TestFiles:
    def test_own_triples_keep_their_names_and_parts(self, tmp_path):
        corpus = of(tmp_path)
        assert corpus.entities == ("01", "02", "03", "04", "1") and corpus.relations == ("knows", "likes")
        assert named(corpus, corpus.train)[2:4] == [("01", "knows", "03"), ("03", "knows", "04")]
        assert named(corpus, corpus.development) == [("01", "likes", "03")]
        assert named(corpus, corpus.test) == [("01", "likes", "04"), ("04", "knows", "1")]
        told = knowledge_graph.describe(corpus, 3)
        assert (told["entities"], told["train_facts"], told["validation_facts"]) == (5, 5, 2)
        assert told["validation_facts_of_unseen_entities"] == 1 and told["sha256"] == corpus.sha256

    def test_fingerprint_is_of_every_fact_and_the_same_in_another_process(self, tmp_path):
        corpus = of(tmp_path)
        code = f"""
from ml_collections import ConfigDict
from tasks import knowledge_graph
print(knowledge_graph.load(ConfigDict({data_config(path=str(tmp_path)).to_dict()!r})).sha256,
      knowledge_graph.load(ConfigDict({data_config().to_dict()!r})).sha256)
"""
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.split() == [corpus.sha256, knowledge_graph.load(data_config()).sha256]
        assert of(tmp_path, test="01\tlikes\t04\n").sha256 != corpus.sha256

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"train": "01\tlikes\t02\n01 likes 03\n"}, r"train\.txt line 2: wanted subject<TAB>relation<TAB>object, got '01 likes 03'"),
            ({"train": "01\tlikes\t02\n\n01\t\t03\n"}, r"train\.txt line 3: wanted subject<TAB>relation"),
            ({"train": "01\tlikes\t02\ta\n"}, r"train\.txt line 1: wanted subject<TAB>relation"),
            ({"train": b"01\tlikes\t\xff\n"}, r"train\.txt line 1: not UTF-8 .* at byte 9"),
            ({"train": FACTS["train.txt"] + "02\tlikes\t03\n"}, r"train\.txt line 6: 02 likes 03 stands in .*train\.txt line 2, too"),
            ({"test": "01\tlikes\t04\n01\tlikes\t03\n"}, r"test\.txt line 2: 01 likes 03 stands in .*valid\.txt line 1, too"),
            ({"valid": "01\thates\t02\n"}, r"valid\.txt line 1: no training fact has the relation 'hates'"),
            ({"test": "\n"}, r"test\.txt: wanted lines subject<TAB>relation<TAB>object, got none"),
        ],
    )  # fmt: skip
    def test_a_fault_names_the_file_and_the_line(self, tmp_path, changes, message):
        with pytest.raises(ValueError, match=message):
            of(tmp_path, **changes)

    def test_missing_file_or_folder(self, tmp_path):
        write(tmp_path)
        (tmp_path / "valid.txt").unlink()
        with pytest.raises(ValueError, match=r"valid\.txt is missing: config\.data\.path wants train\.txt, valid\.txt"):
            knowledge_graph.load(data_config(path=str(tmp_path)))

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"name": "fb15k"}, "config.data.name='fb15k': unknown, want one of kinship, path, wn18rr"),
            ({"dir": "somewhere"}, "config.data.dir='somewhere': kinship does not read it"),
            ({"name": "wn18rr", "dir": "x", "path": "y"}, "config.data.path='y': wn18rr does not read it"),
            ({"name": "wn18rr"}, "config.data.dir is empty, want the folder that holds WN18RR .* --config.data.dir="),
        ],
    )
    def test_settings_that_do_not_fit(self, changes, message):
        with pytest.raises(ValueError, match=message):
            knowledge_graph.load(data_config(**changes))


class TestWN18RR:
    """The published archive, in small: the checksums of its files are those of FACTS here."""

    @pytest.fixture(autouse=True)
    def published(self, monkeypatch):
        known = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in FACTS.items()}
        monkeypatch.setattr(triple_files, "SHA256", known)

    def load(self, folder):
        return knowledge_graph.load(data_config(name="wn18rr", dir=str(folder)))

    def archive(self, path, inside="", **changes):
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w:gz") as file:
            for name, text in (FACTS | {f"{key}.txt": text for key, text in changes.items()}).items():
                if text is not None:
                    info = tarfile.TarInfo(inside + name)
                    info.size = len(text.encode())
                    file.addfile(info, io.BytesIO(text.encode()))

    def test_archive_folder_and_own_files_are_the_same_graph(self, tmp_path):
        write(tmp_path / "plain")
        self.archive(tmp_path / "kg-wn18rr" / "WN18RR.tar.gz")
        self.archive(tmp_path / "inner" / "WN18RR.tar.gz", "WN18RR/original/")
        own = knowledge_graph.load(data_config(path=str(tmp_path / "plain")))
        for folder in (tmp_path, tmp_path / "plain", tmp_path / "inner"):
            before = sorted(tmp_path.rglob("*"))
            assert self.load(folder).sha256 == own.sha256
            assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked

    def test_another_content_is_refused_by_its_checksum(self, tmp_path):
        self.archive(tmp_path / "WN18RR.tar.gz", test="01\tlikes\t04\n")
        with pytest.raises(ValueError, match=r"WN18RR\.tar\.gz:test\.txt: not the published test\.txt: wanted sha256 "):
            self.load(tmp_path)

    def test_what_is_missing_or_broken_is_named_with_its_source(self, tmp_path):
        with pytest.raises(ValueError, match=r"WN18RR\.tar\.gz is missing, and so is .*; get WN18RR .*ConvE"):
            self.load(tmp_path)
        self.archive(tmp_path / "WN18RR.tar.gz", valid=None)
        with pytest.raises(ValueError, match=r"WN18RR\.tar\.gz: no valid\.txt in it; get WN18RR"):
            self.load(tmp_path)
        (tmp_path / "WN18RR.tar.gz").write_bytes((tmp_path / "WN18RR.tar.gz").read_bytes()[:90])
        with pytest.raises(ValueError, match=r"WN18RR\.tar\.gz does not read: "):
            self.load(tmp_path)
        (tmp_path / "train.txt").write_text(FACTS["train.txt"])
        with pytest.raises(ValueError, match=r"valid\.txt is missing; get WN18RR"):
            self.load(tmp_path)


class TestKinship:
    facts = triple_files.kinship()
    everything = [fact for part in facts.values() for fact in part]

    def test_every_fact_once_and_four_fifths_to_learn_from(self):
        assert len(set(self.everything)) == len(self.everything)
        assert len(self.facts["test"]) == len(self.facts["development"]) == -(-len(self.everything) // 10)
        assert {s for s, _, _ in self.facts["test"]} <= {x for s, _, o in self.facts["train"] for x in (s, o)}
        assert triple_files.kinship(1) != self.facts

    def test_relations_follow_from_parents_alone(self):
        """Every relation but marriage, derived anew from who is whose mother and father."""
        truth = {}
        for subject, relation, object in self.everything:
            truth.setdefault(relation, set()).add((subject, object))
        both = lambda pairs: pairs | {(b, a) for a, b in pairs}  # noqa: E731
        mother, father = dict(truth["mother"]), dict(truth["father"])
        assert mother.keys() == father.keys()
        parent = truth["mother"] | truth["father"]
        children = {(p, c) for c, p in parent}
        after = lambda one, other: {(a, c) for a, b in one for d, c in other if b == d}  # noqa: E731
        siblings = {(a, b) for a in mother for b in mother if a != b and mother[a] == mother[b]}
        assert both(truth["sibling"]) == siblings and truth["sibling"] & {(b, a) for a, b in truth["sibling"]} == set()
        assert truth["grandmother"] == after(parent, truth["mother"])
        assert truth["grandfather"] == after(parent, truth["father"])
        assert truth["aunt or uncle"] == after(parent, siblings)
        assert both(truth["cousin"]) == both(after(truth["aunt or uncle"], children))
        couples = {(mother[c], father[c]) for c in mother}
        assert couples <= truth["spouse"] and not both(truth["spouse"]) & siblings


@pytest.fixture(scope="module")
def kin():
    return knowledge_graph.load(data_config())


class TestBatches:
    def test_facts_that_are_asked_about_are_hidden_both_ways_and_nothing_else(self, kin):
        count, facts = len(kin.train), asked_both_ways(kin.train, len(kin.relations))
        batch = knowledge_graph.batch(kin, 3, 5, 2, 7)
        for row in range(2):
            edges = np.stack([batch[name][row] for name in ("senders", "relations", "receivers")], 1)
            np.testing.assert_array_equal(edges, facts)
            asked = {
                tuple(batch[name][row][i] for name in ("subjects", "relations_asked", "answers")) for i in range(7)
            }
            hidden = {tuple(fact) for fact in edges[~batch["edge_mask"][row]]}
            turned = {(o, (r + len(kin.relations)) % (2 * len(kin.relations)), s) for s, r, o in asked}
            assert asked <= {tuple(fact) for fact in facts} and hidden == asked | turned
            np.testing.assert_array_equal(batch["edge_mask"][row][:count], batch["edge_mask"][row][count:])

    def test_an_epoch_asks_every_question_once_and_another_seed_in_another_order(self, tmp_path):
        corpus = of(tmp_path)  # 10 questions
        asked = lambda seed, step: np.stack(  # noqa: E731
            [knowledge_graph.batch(corpus, seed, step, 1, 5)[name][0] for name in ("subjects", "relations_asked", "answers")], 1
        )  # fmt: skip
        for epoch in (0, 1):
            found = np.concatenate([asked(4, 2 * epoch), asked(4, 2 * epoch + 1)])
            assert sorted(map(tuple, found)) == sorted(map(tuple, corpus.edges))
        np.testing.assert_array_equal(asked(4, 1), asked(4, 1))
        assert any((asked(4, step) != asked(5, step)).any() for step in range(2))

    def test_training_filters_by_training_facts_alone(self, tmp_path):
        corpus = of(tmp_path)
        number = {name: i for i, name in enumerate(corpus.entities)}
        likes = corpus.relations.index("likes")
        one = np.array([[number["01"], likes, number["02"]]])
        assert corpus.train_answers.others(one).tolist() == [[-1]]
        assert sorted(corpus.all_answers.others(one)[0]) == [-1, number["03"], number["04"]]
        batch = knowledge_graph.batch(corpus, 0, 0, 2, 5)
        seen = {tuple(fact) for fact in corpus.edges}
        for row, i in np.ndindex(2, 5):
            question = batch["subjects"][row, i], batch["relations_asked"][row, i]
            others = {o for s, r, o in seen if (s, r) == question} - {batch["answers"][row, i]}
            assert {o for o in batch["known"][row, i] if o >= 0} == others

    def test_judgement_asks_both_ends_of_every_test_fact_over_the_whole_graph(self, kin):
        rows, owners = knowledge_graph.validation(kin, 50)
        real = rows["answers"] >= 0
        assert rows["edge_mask"].all() and owners.tolist() == list(range(-(-2 * len(kin.test) // 50)))
        assert real.ravel().argmin() == 2 * len(kin.test)  # padding last
        asked = np.stack([rows[name][real] for name in ("subjects", "relations_asked", "answers")], 1)
        assert sorted(map(tuple, asked)) == sorted(map(tuple, asked_both_ways(kin.test, len(kin.relations))))
        everything = asked_both_ways(np.concatenate([kin.train, kin.development, kin.test]), len(kin.relations))
        for question, known in list(zip(asked, rows["known"][real], strict=True))[:40]:
            same = everything[(everything[:, :2] == question[:2]).all(1), 2]
            assert sorted(known[known >= 0]) == sorted(set(same) - {question[2]})
        looked_at = knowledge_graph.development(kin, 50)[0]
        real = looked_at["answers"] >= 0
        facts = {tuple(fact) for fact in asked_both_ways(kin.development, len(kin.relations))}
        assert {
            tuple(x) for x in np.stack([looked_at[n][real] for n in ("subjects", "relations_asked", "answers")], 1)
        } == facts


class Table:
    """A model that has learnt its scores by heart: [subjects, relations, entities]."""

    def __init__(self, scores):
        self.scores = jnp.asarray(scores, jnp.float32)

    def __call__(self, edges, subjects, relations, rng=None):
        return self.scores[subjects, relations]

    def encode(self, edges, rng=None):
        return self.scores[None]

    def answer(self, entities, subjects, relations, rng=None):
        return entities[0][subjects, relations]


class TestScore:
    def test_ranks_are_those_of_counting(self):
        rng = np.random.default_rng(0)
        scores = rng.integers(0, 6, (40, 23)).astype(np.float32)  # many ties
        answers, known = rng.integers(0, 23, 40), np.full((40, 9), -1)
        for row in range(40):
            others = rng.permutation(np.delete(np.arange(23), answers[row]))[: rng.integers(0, 9)]
            known[row, rng.permutation(9)[: len(others)]] = others
        found = np.asarray(filtered_ranks(jnp.asarray(scores), jnp.asarray(answers), jnp.asarray(known)))
        for row in range(40):
            rivals = np.delete(scores[row], [answers[row], *known[row][known[row] >= 0]])
            own = scores[row, answers[row]]
            assert found[row] == 1 + (rivals > own).sum() + (rivals == own).sum() / 2

    def test_a_model_that_scores_all_alike_gains_nothing(self):
        rank = filtered_ranks(jnp.zeros((1, 101)), jnp.array([7]), jnp.array([[3, 5]]))
        assert rank.tolist() == [50.0]  # the middle of the 99 that are left

    def test_what_is_no_number_gains_nothing(self):
        scores = np.full((3, 7), np.nan)
        scores[1, :2], scores[2, 3] = (0, 1), 5
        ranks = filtered_ranks(jnp.asarray(scores), jnp.array([3, 3, 3]), jnp.array([[5, -1], [0, 6], [6, -1]]))
        assert ranks.tolist() == [6.0, 5.0, 6.0]  # the last of those left: 6, 5 and 6

    def test_sums_of_a_row_and_details_by_hand(self, kin):
        length, entities = 50, len(kin.entities)
        table = np.random.default_rng(1).integers(0, 40, (entities, 2 * len(kin.relations), entities)) / 8
        model, (rows, _) = Table(table), knowledge_graph.validation(kin, length)
        loss, count, metric, weight = map(np.asarray, knowledge_graph.score(model, rows))
        real = rows["answers"] >= 0
        np.testing.assert_array_equal(count, real.sum(1))
        np.testing.assert_array_equal(weight, count)
        scores = table[rows["subjects"], rows["relations_asked"]]
        own = np.take_along_axis(scores, np.maximum(rows["answers"], 0)[..., None], -1)
        nats = np.log(np.exp(scores).sum(-1)) - own[..., 0]
        np.testing.assert_allclose(loss, (nats * real).sum(1), rtol=1e-5)
        ranks = np.asarray(filtered_ranks(scores, np.maximum(rows["answers"], 0), rows["known"]))[real]
        np.testing.assert_allclose(metric.sum(), (1 / ranks).sum(), rtol=1e-6)
        found = knowledge_graph.details(model, kin, length)
        for k in (1, 3, 10):
            assert found[f"Hits@{k}"] == pytest.approx(np.mean(ranks <= k))
        kinds = rows["relations_asked"][real]
        assert found["MRR of objects"] == pytest.approx(np.mean(1 / ranks[kinds < len(kin.relations)]), rel=1e-5)
        assert found["MRR of subjects"] == pytest.approx(np.mean(1 / ranks[kinds >= len(kin.relations)]), rel=1e-5)
        cousin = kin.relations.index("cousin")
        assert found["MRR of cousin"] == pytest.approx(
            np.mean(1 / ranks[kinds % len(kin.relations) == cousin]), rel=1e-5
        )
        assert len(found) == 5 + len(kin.relations)


class TestBaselines:
    def test_by_hand(self, tmp_path):
        corpus = of(
            tmp_path,
            train="a\tr\tb\nc\tr\tb\nd\tr\ta\nb\tq\ta\n",
            valid="a\tr\tc\n",
            test="a\tr\td\n",  # (a, r, ?) = d and (d, r^-1, ?) = a
        )
        found = knowledge_graph.baselines(corpus)
        # Objects of r: b 2, a 1, none else; b and c are known to be right, so a is before d. Subjects: a, c, d once
        # each, c is no answer about d; a ties with c and d.
        assert found["frequency"] == pytest.approx((1 / 2 + 1 / 2) / 2)
        # (d, r, a) is a fact: d first. The inverse question (d, r^-1, ?) is met by (a, r^-1, d): a first.
        assert found["symmetry"] == 1.0
        # Linked with a: b twice (r and q), c never, d once; b is filtered. Linked with d: a alone.
        assert found["neighbours"] == 1.0

    def test_answers_count_what_they_hold(self):
        facts = np.array([[0, 0, 2], [3, 1, 1], [0, 0, 1], [0, 0, 2]])
        counts = Answers.of(facts).counts(np.array([[3, 1], [0, 0], [3, 0], [9, 9]]), 4)
        assert counts.tolist() == [[0, 1, 0, 0], [0, 1, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
