"""Questions about grammar: which are asked, what hides the answer, the tree as edges, baselines by hand, training."""

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs.compare_syntax import get_config
from experiment import settings
from models.transformer import Encoder
from tasks import agreement, conllu, parser, syntax, syntax_corpus
from tasks.syntax_rows import RARE, examples_of
from tasks.words import MASK, UNKNOWN, VOCABULARY, Words, signatures

LENGTH = 12
SING, PLUR = "Number=Sing", "Number=Plur"
FINITE = "|Person=3|VerbForm=Fin"


def conllu_text(*sentences):
    """CoNLL-U from sentences of (form, UPOS, FEATS, HEAD, DEPREL), for every one "form/UPOS/FEATS/HEAD/DEPREL"."""
    lines = []
    for number, sentence in enumerate(sentences):
        lines.append(f"# sent_id = s{number}")
        for place, word in enumerate(sentence.split(), 1):
            form, upos, feats, head, deprel = word.split("/")
            lines.append("\t".join([str(place), form, form.lower(), upos, "_", feats, head, deprel, "_", "_"]))
        lines.append("")
    return "\n".join(lines) + "\n"


def words_of(sentence):
    return conllu.parse(conllu_text(sentence))[0].words


# "The keys to the cabinet are here": an attractor between; "She sees that they walk": two questions;
# "The men who know him sleep": a copula's subject hangs on its head; "Go": nobody to agree with.
KEYS = f"The/DET/_/2/det keys/NOUN/{PLUR}/7/nsubj to/ADP/_/5/case the/DET/_/5/det cabinet/NOUN/{SING}/2/nmod are/AUX/{PLUR}{FINITE}/7/cop here/ADV/_/0/root"
TWO = f"She/PRON/{SING}/2/nsubj sees/VERB/{SING}{FINITE}/0/root that/SCONJ/_/5/mark they/PRON/{PLUR}/5/nsubj walk/VERB/{PLUR}{FINITE}/2/ccomp"
GO = "Go/VERB/VerbForm=Fin/0/root"
ASKS = f"Asks/VERB/{SING}{FINITE}/0/root who/PRON/_/1/nsubj"  # the subject after the verb, and without a number


@pytest.fixture
def treebank(tmp_path):
    """A folder with a treebank: 14 training sentences, 3 development and 2 test sentences."""
    folder = tmp_path / "UD_Tiny-Test"
    folder.mkdir()
    parts = {"train": [KEYS, TWO, GO, TWO] * 3 + [TWO, TWO], "dev": [KEYS, GO, ASKS], "test": [TWO, KEYS]}
    for part, sentences in parts.items():
        (folder / f"xx_tiny-ud-{part}.conllu").write_text(conllu_text(*sentences))
    return tmp_path


def data_config(folder, **changes):
    fields = {
        "name": "ud",
        "path": "",
        "dir": str(folder),
        "length": LENGTH,
        "question": "agreement",
        "tree": "unlabelled",
    }
    return ConfigDict({**fields, **changes})


def visible(examples, row):
    """The edges of a row that count: a list of (sender, receiver, relation)."""
    mask = examples["edge_mask"][row]
    return list(
        zip(*(examples[name][row][mask].tolist() for name in ("senders", "receivers", "relations")), strict=True)
    )


class TestWords:
    def test_each_rare_word_is_known_by_the_longest_ending_that_is_not_rare(self):
        words = Words.of(
            ["dog"] * 5 + ["walking", "talking", "asking"] + ["Berlin", "Bern", "Basel", "1,5", "7", "22", "x3"]
        )
        assert words["dog"] == words["Dog"] > UNKNOWN
        assert words["balking"] == words["walking"] != words["wig"]
        assert words["Bonn"] == words["Basel"] != words["balking"]
        assert words["1984"] == words["22"] == words["1,5"] != words["x3"]
        assert words["!"] == UNKNOWN

    def test_order_does_not_matter_and_no_token_is_outside_the_vocabulary(self):
        forms = [f"{letter}{number}" for number in range(2000) for letter in "abcdé" for _ in range(1 + number % 4)]
        words = Words.of(forms)
        assert words.tokens == Words.of(reversed(forms)).tokens
        numbers = list(words.tokens.values())
        assert sorted(numbers) == list(range(2, 2 + len(numbers))) and max(numbers) < VOCABULARY and MASK < UNKNOWN < 2

    def test_any_script_has_signatures(self):
        assert signatures("Дома")[0] == "\tXxома" and signatures("家")[-1] == "\t" and signatures("-") == ["\t"]


class TestAgreement:
    def test_subject_of_the_copulas_head_and_the_attractor_between(self):
        [question] = agreement.questions(words_of(KEYS))
        assert question == (5, 1, 1, 1) and question.distance == 4

    @pytest.mark.parametrize("last", [1, 3])  # the head of C: A, or B
    def test_those_joined_to_the_subject_are_no_attractors_and_what_hangs_on_them_is(self, last):
        name, verb = f"PROPN/{SING}", f"are/AUX/{PLUR}{FINITE}"
        two = f"A/{name}/5/nsubj and/CCONJ/_/3/cc B/{name}/1/conj {verb}/5/cop here/ADV/_/0/root"
        assert agreement.questions(words_of(two)) == [(3, 0, 1, 0)]
        three = f"A/{name}/8/nsubj ,/PUNCT/_/3/punct B/{name}/1/conj and/CCONJ/_/5/cc C/{name}/{last}/conj"
        assert agreement.questions(words_of(f"{three} of/ADP/_/1/case {verb}/8/cop here/ADV/_/0/root"))[0][3] == 0
        hanging = f"{three} D/{name}/5/nmod {verb}/8/cop here/ADV/_/0/root"
        assert agreement.questions(words_of(hanging))[0][3] == 1

    def test_nouns_joined_to_an_attractor_are_attractors(self):
        sentence = KEYS.replace("the/DET/_/5/det cabinet", f"box/NOUN/{SING}/5/nmod cabinet").replace("nmod", "conj", 1)
        assert agreement.questions(words_of(sentence))[0].attractors == 2

    def test_a_subject_behind_the_verb(self):
        [question] = agreement.questions(words_of(ASKS))
        assert question == (0, 1, 0, 0) and question.distance == 1

    def test_every_verb_of_a_sentence(self):
        assert [each[:3] for each in agreement.questions(words_of(TWO))] == [(1, 0, 0), (4, 3, 1)]

    @pytest.mark.parametrize(
        "sentence",
        [
            GO,
            f"I/PRON/{SING}/2/nsubj see/VERB/{SING}|Person=1|VerbForm=Fin/0/root",
            f"it/PRON/{SING}/2/nsubj seen/VERB/{SING}|VerbForm=Part/0/root",
            f"it/PRON/{SING}/2/nsubj can/VERB/VerbForm=Fin/0/root",
            f"it/PRON/{SING}/3/nsubj it/PRON/{SING}/3/nsubj:outer is/VERB/{SING}{FINITE}/0/root",
            f"both/PRON/{SING}/2/obj are/VERB/Number=Dual{FINITE}/0/root",
            f"it/PRON/{SING}/2/obj is/VERB/{SING}{FINITE}/0/root",
            f"it/PRON/{SING}/2/nsubj is/NOUN/{SING}{FINITE}/0/root",
        ],
    )
    def test_not_asked(self, sentence):
        assert agreement.questions(words_of(sentence)) == []

    def test_person_and_form_matter_only_where_they_are_marked(self):
        sentence = f"ono/PRON/{SING}/2/nsubj bylo/VERB/Mood=Ind|{SING}/0/root"
        assert len(agreement.questions(words_of(sentence))) == 1

    def test_rules(self):
        words, [question] = words_of(KEYS), agreement.questions(words_of(KEYS))
        assert agreement.nearest_noun(words, question, 9) == 0 and agreement.of_subject(words, question, 9) == 1
        words, [question] = words_of(ASKS), agreement.questions(words_of(ASKS))
        assert agreement.nearest_noun(words, question, 9) == agreement.of_subject(words, question, 9) == 9


class TestLoad:
    def test_the_verb_is_hidden_wherever_it_is_asked_about(self, treebank):
        corpus = syntax.load(data_config(treebank))
        for examples in (syntax.validation(corpus, LENGTH)[0], syntax.batch(corpus, 0, 0, 50, LENGTH)):
            assert (examples["asked"].sum(1) == 1).all()
            assert (
                (examples["tokens"] == MASK) == (examples["asked"] | (np.arange(LENGTH) >= examples["sizes"][:, None]))
            ).all()

    def test_rows_owners_and_answers(self, treebank):
        corpus = syntax.load(data_config(treebank))
        examples, owners = syntax.validation(corpus, LENGTH)
        assert corpus.classes == agreement.NUMBERS
        assert owners.tolist() == [0, 1, 2, 2, 3]  # KEYS, ASKS, TWO twice, KEYS; GO has no question
        assert examples["asked"].argmax(1).tolist() == [5, 0, 1, 4, 5]
        assert examples["labels"][examples["asked"]].tolist() == [1, 0, 0, 1, 1]

    def test_nouns_are_practised_and_never_the_verb(self, treebank):
        examples, _ = syntax.validation(syntax.load(data_config(treebank)), LENGTH)
        assert np.flatnonzero(examples["practised"][0]).tolist() == [1, 4]  # keys, cabinet
        assert examples["labels"][0, [1, 4]].tolist() == [1, 0]
        assert np.flatnonzero(examples["practised"][2]).tolist() == [0, 3]  # She, they

    def test_groups(self, treebank):
        found = syntax.groups(syntax.load(data_config(treebank)), LENGTH)
        named = {name: [labels[i] for i in index] for name, (labels, index) in found.items()}
        assert named == {
            "distance from subject to verb": ["3-4", "1", "1", "1", "3-4"],
            "number of attractors": ["1", "0", "0", "0", "1"],
        }

    def test_baselines_and_ceilings_by_hand(self, treebank):
        # 11 singular and 14 plural in training: the majority is plural; the nearest noun of KEYS misleads, and ASKS has none.
        corpus = syntax.load(data_config(treebank))
        told = syntax.describe(corpus, LENGTH)
        assert told["baselines"] == {"majority": 3 / 5, "nearest noun": 2 / 5}
        assert told["ceilings"] == {"subject": 4 / 5}

    def test_other_questions_have_no_ceiling(self, treebank):
        told = syntax.describe(syntax.load(data_config(treebank, question="pos")), LENGTH)
        assert set(told["baselines"]) == {"majority", "word"} and told["ceilings"] == {}

    def test_a_tree_as_edges(self, treebank):
        corpus = syntax.load(data_config(treebank, tree="labelled"))
        assert "root" not in corpus.relations and syntax.fields(corpus)["model.num_relations"] == 1 + 2 * len(
            corpus.relations
        )
        down = {name: 1 + index for index, name in enumerate(corpus.relations)}
        up = {name: index + len(down) for name, index in down.items()}
        examples, _ = syntax.validation(corpus, LENGTH)
        assert sorted(visible(examples, 1)) == [(0, 0, 0), (0, 1, down["nsubj"]), (1, 0, up["nsubj"]), (1, 1, 0)]
        assert examples["senders"].shape == (5, 3 * LENGTH)

    def test_unlabelled_edges_have_three_kinds(self, treebank):
        corpus = syntax.load(data_config(treebank))
        edges = visible(syntax.validation(corpus, LENGTH)[0], 0)
        heads = [word.head for word in words_of(KEYS)]
        assert set(edges) == {
            *((place, place, 0) for place in range(7)),
            *((head, place, 1) for place, head in enumerate(heads) if head >= 0),
            *((place, head, 2) for place, head in enumerate(heads) if head >= 0),
        }
        assert len(edges) == 7 + 6 + 6 and syntax.fields(corpus)["model.num_relations"] == 3

    @pytest.mark.parametrize(
        ("question", "label"),
        [("pos", "VERB"), ("features", f"VERB|{SING}|Person=3|VerbForm=Fin"), ("relations", "root")],
    )
    def test_questions_about_every_word(self, treebank, question, label):
        corpus = syntax.load(data_config(treebank, question=question))
        examples, owners = syntax.validation(corpus, LENGTH)
        assert owners.tolist() == [0, 1, 2, 3, 4]
        assert (examples["asked"].sum(1) == examples["sizes"]).all()
        assert corpus.classes[examples["labels"][2, 0]] == label  # "Asks"
        names, index = syntax.groups(corpus, LENGTH)["words in the sentence"]
        assert [names[i] for i in index] == ["1-8"] * 5

    def test_a_label_that_training_has_not_is_answered_wrong_by_every_rule(self, treebank):
        path = treebank / "UD_Tiny-Test" / "xx_tiny-ud-test.conllu"
        path.write_text(conllu_text(GO.replace("VERB", "INTJ")))
        corpus = syntax.load(data_config(treebank, question="pos"))
        assert (
            corpus.classes[-1] == syntax_corpus.UNSEEN
            and syntax.validation(corpus, LENGTH)[0]["labels"][-1, 0] == len(corpus.classes) - 1
        )
        assert syntax.baselines(corpus, LENGTH)["word"] == 9 / 11  # "who" and "Go" as INTJ

    def test_long_sentences_are_left_out_and_counted(self, treebank):
        corpus = syntax.load(data_config(treebank, length=5))
        told = syntax.describe(corpus, 5)
        assert (told["train_left_out"], told["validation_left_out"], told["validation_examples"]) == (3, 2, 3)
        assert syntax.batch(corpus, 0, 0, 20, 5)["sizes"].max() == 5
        assert len(syntax.validation(corpus, 7)[1]) == 5  # judged at a greater length than trained

    def test_same_files_same_fingerprint_and_another_for_another_question(self, treebank):
        prints = [
            syntax.load(data_config(treebank, **changes)).sha256
            for changes in ({}, {}, {"tree": "labelled"}, {"question": "pos"}, {"length": 5})
        ]
        assert prints[0] == prints[1] and len(set(prints)) == 4

    def test_a_batch_is_a_function_of_seed_and_step(self, treebank):
        corpus = syntax.load(data_config(treebank))
        one, same, other = (syntax.batch(corpus, seed, 3, 20, LENGTH)["asked"] for seed in (0, 0, 1))
        assert (one == same).all() and (one != other).any()

    def test_in_training_some_words_are_shown_as_if_they_were_rare(self, treebank):
        corpus = syntax.load(data_config(treebank, question="pos"))
        plain = examples_of(corpus.train, np.zeros(400, int), LENGTH, 1)["tokens"]  # KEYS
        shown = examples_of(corpus.train, np.zeros(400, int), LENGTH, 1, np.random.default_rng(0))["tokens"]
        size = len(words_of(KEYS))
        looks = corpus.train.looks[:size]
        changed = shown[:, :size] != plain[:, :size]
        assert (shown[:, :size][changed] == np.broadcast_to(looks, changed.shape)[changed]).all()
        assert (shown[:, size:] == MASK).all()
        differ = looks != corpus.train.tokens[:size]
        assert differ.any() and abs(changed[:, differ].mean() - RARE) < 0.05

    def test_path_names_the_folder_or_the_files(self, treebank):
        whole = syntax.load(data_config(treebank)).sha256
        files = [f"UD_Tiny-Test/xx_tiny-ud-{part}.conllu" for part in ("train", "dev", "test")]
        for path in ("UD_Tiny-Test", "UD_Tiny-Test/xx_tiny", "UD_Tiny-Test/xx", *files):
            assert syntax.load(data_config("", path=str(treebank / path))).sha256 == whole
        assert syntax.load(data_config(treebank / "UD_Tiny-Test")).sha256 == whole

    def test_a_whole_name_is_not_the_beginning_of_another(self, treebank):
        (treebank / "UD_Tiny-Test" / "xx_tiny2-ud-train.conllu").write_text(conllu_text(TWO))
        corpus = syntax.load(data_config("", path=str(treebank / "UD_Tiny-Test" / "xx_tiny")))
        assert corpus.sizes["treebank"] == "xx_tiny" and corpus.sizes["train_sentences"] == 14


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"name": "ptb"}, "config.data.name='ptb': unknown, want ud"),
            (
                {"question": "tense"},
                "config.data.question='tense': unknown, want agreement or pos or features or relations",
            ),
            ({"tree": "gold"}, "config.data.tree='gold': unknown, want labelled or unlabelled or predicted"),
            ({"question": "relations", "tree": "labelled"}, "its labels are the relations asked for; write predicted"),
            ({"dir": ""}, "universaldependencies.org.*--config.data.dir=FOLDER"),
            ({"path": "x"}, "config.data.path='x': config.data.dir names another place; drop one of the two"),
            (
                {"dir": "", "path": "nowhere/xx"},
                "no treebank there, wanted nowhere/xx-ud-train.conllu; get .*universaldependencies.org",
            ),
        ],
    )
    def test_one_line(self, treebank, changes, told):
        with pytest.raises(ValueError, match=told) as fault:
            syntax.load(data_config(treebank, **changes))
        assert "\n" not in str(fault.value)

    def test_a_folder_without_a_treebank_names_what_it_wanted(self, tmp_path):
        with pytest.raises(ValueError) as fault:
            syntax.load(data_config(tmp_path))
        assert f"wanted {tmp_path}/*/*-ud-train.conllu" in str(fault.value)

    def test_a_file_that_is_not_there_names_no_treebank(self, treebank):
        path = treebank / "UD_Tiny-Test" / "xx_tiny-ud-dev2.conllu"
        with pytest.raises(ValueError, match="xx_tiny-ud-dev2.conllu': no treebank there, wanted .*/xx_tiny-ud-train"):
            syntax.load(data_config("", path=str(path)))

    def test_several_treebanks(self, treebank):
        other = treebank / "UD_Other-Test"
        other.mkdir()
        (other / "yy_other-ud-train.conllu").write_text(conllu_text(TWO))
        with pytest.raises(
            ValueError, match="several treebanks, .*xx_tiny, .*yy_other|several treebanks, .*yy_other, .*xx_tiny"
        ):
            syntax.load(data_config(treebank))

    def test_nothing_to_judge(self, treebank):
        for part in ("dev", "test"):
            (treebank / "UD_Tiny-Test" / f"xx_tiny-ud-{part}.conllu").unlink()
        with pytest.raises(ValueError, match="xx_tiny-ud-test.conllu is missing"):
            syntax.load(data_config(treebank))

    def test_a_language_without_agreement(self, treebank):
        (treebank / "UD_Tiny-Test" / "xx_tiny-ud-train.conllu").write_text(conllu_text(GO, GO))
        with pytest.raises(ValueError, match="xx_tiny has no sentence to ask it about; write another question"):
            syntax.load(data_config(treebank))

    def test_too_few_words_for_any_training_sentence(self, treebank):
        told = "config.data.length=1: xx_tiny has no training sentence with so few words to ask 'agreement' about"
        with pytest.raises(ValueError, match=f"{told}, and 11 have more; write a greater length"):
            syntax.load(data_config(treebank, length=1))

    @pytest.mark.parametrize("function", [syntax.describe, syntax.validation, syntax.groups, syntax.baselines])
    def test_too_few_words_for_any_sentence_to_judge_on(self, treebank, function):
        corpus = syntax.load(data_config(treebank))
        with pytest.raises(
            ValueError, match="^length: got 1, and the shortest sentence has 2 words; write that or more$"
        ):
            function(corpus, 1)
        function(corpus, 2)


class TestPredicted:
    def test_trees_come_from_what_the_model_sees_and_answers_stay(self, treebank, tmp_path, monkeypatch):
        """The parser is given the rows with the mask token in place of the verb, and its trees replace the gold ones."""
        seen = []

        def jackknife(train, owners, judged, vocabulary):
            seen.extend(tokens for tokens, _ in train + judged)
            assert len(owners) == len(train) and vocabulary == VOCABULARY
            return [[np.arange(len(tokens), dtype=np.int32) - 1 for tokens, _ in part] for part in (train, judged)]

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(parser, "jackknife", jackknife)
        gold, corpus = (syntax.load(data_config(treebank, tree=tree)) for tree in ("unlabelled", "predicted"))
        assert sum((tokens == MASK).sum() for tokens in seen) == len(corpus.train.sizes) + len(corpus.validation.sizes)
        assert sum((tokens == MASK).sum() == 0 for tokens in seen) == 3  # GO in training, which asks nothing
        for one, other in ((gold.train, corpus.train), (gold.validation, corpus.validation)):
            assert (one.tokens == other.tokens).all() and (one.labels == other.labels).all()
            assert other.heads.tolist() == [place - 1 for size in other.sizes for place in range(size)]
        right = np.concatenate([gold.validation.heads == corpus.validation.heads])
        assert syntax.describe(corpus, LENGTH)["parser_uas"] == right.mean()
        assert len(list((tmp_path / "attention-atlas" / "trees").iterdir())) == 1  # kept


def encoder(corpus, label):
    config = get_config()
    config.data.length, config.data.question, config.data.tree = LENGTH, corpus.question, corpus.tree
    config.model.width, config.model.mlp_width, config.model.depth, config.model.dropout = 8, 16, 1, 0.0
    settings.fill(config, syntax.fields(corpus))
    return Encoder(settings.variants(config)[label].model, length=LENGTH, rngs=nnx.Rngs(0))


class TestModels:
    def test_score_and_pictures(self, treebank):
        corpus = syntax.load(data_config(treebank))
        model = encoder(corpus, "rope_graph")
        examples, _ = syntax.validation(corpus, LENGTH)
        loss, count, right, weight = syntax.score(model, examples)
        assert count.tolist() == weight.tolist() == [1] * 5 and set(np.unique(right)) <= {0, 1}
        np.testing.assert_allclose(loss, np.log(2), atol=0.1)  # two classes, no training
        learnt = syntax.score(model, examples, jax.random.key(0))
        assert learnt[1].tolist() == [3, 1, 3, 3, 3] and learnt[3].tolist() == [1] * 5

        shown = syntax.pictures(model, corpus, LENGTH)
        assert shown["words"][0].tolist() == [
            "The",
            "keys",
            "to",
            "the",
            "cabinet",
            "are",
            "here",
        ]  # an attractor comes first
        assert shown["asked"].tolist()[:2] == [5, 5] and shown["heads"][0].tolist() == [1, 6, 4, 4, 1, 6, -1]
        assert shown["labels"].tolist()[:2] == [1, 1] and (shown["confidence"] >= 0.5).all()
        np.testing.assert_allclose(shown["attention"].sum(1), 1, rtol=1e-5)
        assert (shown["heads"] == -2).sum() == (shown["words"] == "").sum() > 0

    def test_pictures_where_all_sentences_are_long(self, treebank, monkeypatch):
        monkeypatch.setattr(syntax, "PICTURED", 1)
        corpus = syntax.load(data_config(treebank))
        shown = syntax.pictures(encoder(corpus, "rope"), corpus, LENGTH)
        assert shown["words"].tolist() == [["Asks", "who"]]

    def test_what_is_no_edge_has_no_influence(self, treebank):
        corpus = syntax.load(data_config(treebank))
        model = encoder(corpus, "graph")
        examples, _ = syntax.validation(corpus, LENGTH)
        hidden = {
            name: np.where(examples["edge_mask"], examples[name], 0) for name in ("senders", "receivers", "relations")
        }
        for one, other in zip(syntax.score(model, examples), syntax.score(model, examples | hidden), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_pictures_of_other_questions_show_the_word_farthest_from_its_head(self, treebank):
        corpus = syntax.load(data_config(treebank, question="relations"))
        shown = syntax.pictures(encoder(corpus, "rope"), corpus, LENGTH)
        assert shown["asked"][0] == 1 and corpus.classes[shown["labels"][0]] == "nsubj"  # "keys", from "here"


def test_examples_hold_what_rows_hold(treebank):
    corpus = syntax.load(data_config(treebank, question="pos"))
    rows = corpus.validation
    examples = examples_of(rows, np.array([2, 0]), LENGTH, 1)
    assert examples["tokens"][0, :2].tolist() == rows.tokens[rows.edges[2] : rows.edges[3]].tolist()
    assert {name: array.dtype.name for name, array in examples.items()} == {
        "tokens": "int32", "labels": "int32", "asked": "bool", "practised": "bool", "sizes": "int32",
        "senders": "int32", "receivers": "int32", "relations": "int32", "edge_mask": "bool",
    }  # fmt: skip
