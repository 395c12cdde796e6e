"""CoNLL-U: everything the format has is read, and whatever is wrong is one line that names file and line."""

import pytest

from tasks import conllu

# A published kind of sentence: a comment, a multiword token, an empty node, features, subtypes, an underscore as a word.
SENTENCE = """\
# sent_id = a-1
# text = They don't know _ or = me
# a remark without a value
1\tThey\tthey\tPRON\tPRP\tCase=Nom|Number=Plur|Person=3\t4\tnsubj\t4:nsubj|6.1:nsubj\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=Yes
2\tdo\tdo\tAUX\tVBP\tMood=Ind|VerbForm=Fin\t4\taux\t4:aux\t_
3\tn't\tnot\tPART\tRB\tPolarity=Neg\t4\tadvmod\t4:advmod\t_
4\tknow\tknow\tVERB\tVB\tVerbForm=Inf\t0\troot\t0:root\t_
5\t_\t_\tPUNCT\t-\t_\t4\tpunct\t4:punct\t_
6\tor\tor\tCCONJ\tCC\t_\t7\tcc\t6.1:cc\t_
6.1\tknow\tknow\tVERB\tVB\tVerbForm=Inf\t_\t_\t4:conj:or\tCopyOf=4
7\tme two\t_\tPRON\tPRP\tNumber[psor]=Sing\t4\tobl:unmarked\t6.1:obj\tGloss=x y|A=b

"""


def faulty(number, line):
    """SENTENCE with one line replaced, or left out for None."""
    lines = SENTENCE.splitlines()
    lines[number - 1 : number] = [] if line is None else [line]
    return "\n".join(lines) + "\n\n"


def word(number, head, deprel="dep", feats="_", columns=10):
    return "\t".join([str(number), "w", "w", "X", "_", feats, str(head), deprel, "_", "_"][:columns])


class TestParse:
    def test_every_column_of_a_word(self):
        [sentence] = conllu.parse(SENTENCE)
        first, underscore, last = sentence.words[0], sentence.words[4], sentence.words[6]
        assert first[:4] == ("They", "they", "PRON", "PRP")
        assert dict(first.feats) == {"Case": "Nom", "Number": "Plur", "Person": "3"}
        assert (first.head, first.deprel, first.deps, first.misc) == (3, "nsubj", "4:nsubj|6.1:nsubj", "")
        assert (underscore.form, underscore.lemma, underscore.feats) == ("_", "_", {})
        assert (last.form, last.lemma, last.misc) == ("me two", "", "Gloss=x y|A=b")
        assert (last.deprel, last.relation, dict(last.feats)) == ("obl:unmarked", "obl", {"Number[psor]": "Sing"})

    def test_what_is_no_word_of_the_tree_stands_apart(self):
        [sentence] = conllu.parse(SENTENCE)
        assert [each.head for each in sentence.words] == [3, 3, 3, -1, 3, 6, 3]
        assert sentence.multiwords == ((1, 2, "don't", "SpaceAfter=Yes"),)
        [(after, number, empty)] = sentence.empties
        assert (after, number, empty.form, empty.head, empty.deps, empty.misc) == (
            5,
            1,
            "know",
            -1,
            "4:conj:or",
            "CopyOf=4",
        )

    def test_comments(self):
        [sentence] = conllu.parse(SENTENCE)
        assert sentence.comment("sent_id") == "a-1" and sentence.comment("text") == "They don't know _ or = me"
        assert sentence.comment("newdoc id") == "" and len(sentence.comments) == 3 and sentence.line == 4

    def test_features_are_read_only(self):
        [sentence] = conllu.parse(SENTENCE)
        with pytest.raises(TypeError):
            sentence.words[0].feats["Number"] = "Sing"

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text.replace("\n", "\r\n"),
            lambda text: text.removesuffix("\n"),
            lambda text: text.removesuffix("\n\n"),
            lambda text: "\n" + text + "\n\n",
        ],
    )
    def test_line_ends_and_blank_lines_do_not_matter(self, change):
        both = conllu.parse(SENTENCE + SENTENCE)
        found = conllu.parse(change(SENTENCE + SENTENCE))
        assert [each.words for each in found] == [each.words for each in both]
        assert [each.comments for each in found] == [each.comments for each in both]

    def test_a_form_may_hold_characters_that_end_lines_elsewhere(self):
        [sentence] = conllu.parse(word(1, 0, "root").replace("w", "a\u2028b\x85c"))
        assert sentence.words[0].form == "a\u2028b\x85c"

    def test_nothing_is_no_sentence(self):
        assert conllu.parse("") == conllu.parse("\n\n") == []

    def test_empty_nodes_before_the_first_word_and_several_in_a_row(self):
        node = "\t_\t_\t_\t_\t_\t_\t_\t1:dep\t_"
        [sentence] = conllu.parse("\n".join(["0.1" + node, "0.2" + node, word(1, 0, "root"), "1.1" + node]))
        assert [each[:2] for each in sentence.empties] == [(-1, 1), (-1, 2), (0, 1)]


class TestFaults:
    @pytest.mark.parametrize(
        ("text", "line", "told"),
        [
            (faulty(7, word(3, 4, columns=9)), 7, "wanted 10 columns with tabs between them, got 9"),
            (faulty(7, word(3, 4).replace("\t", "    ")), 7, "got 1"),
            (faulty(7, word(3, 4) + "\t_"), 7, "got 11"),
            (faulty(7, word(3, 4).replace("\tX\t", "\t\t")), 7, "UPOS is empty; write _"),
            (faulty(7, word(3, 4).replace("\tX\t", "\tX Y\t")), 7, "UPOS: wanted no space, got 'X Y'"),
            (faulty(7, word("x", 4)), 7, "ID: wanted such as 3, 3-4 or 3.1, got 'x'"),
            (faulty(7, word(4, 4)), 7, "ID: wanted 3, got 4"),
            (faulty(4, None), 4, "ID: 2-3 stands before word 1; put it before word 2"),
            (faulty(7, None), 7, "ID: wanted 3, got 4"),
            (faulty(5, word("3-4", "_")), 5, "ID: 3-4 stands before word 2; put it before word 3"),
            (faulty(5, word("2-1", "_")), 5, "ID: wanted first-last, got 2-1"),
            (faulty(7, word("3-4", "_") + "\n" + word(3, 4)), 7, "ID: 3-4 shares words with the token before it"),
            (faulty(12, word("7-9", "_") + "\n" + word(7, 4)), 13, "ID: 7-9 ends after the last word"),
            (faulty(11, word("6.2", "_")), 11, "ID: wanted 6.1, got 6.2"),
            (faulty(11, word("7.1", "_")), 11, "ID: wanted 6.1, got 7.1"),
            (faulty(11, word("6.1", "4")), 11, "HEAD: wanted _ for an empty node, which only DEPS joins, got '4'"),
            (faulty(7, word(3, "_")), 7, "HEAD: wanted the ID of a word, or 0 for the root, got '_'"),
            (faulty(7, word(3, "-1")), 7, "HEAD: wanted the ID of a word"),
            (faulty(7, word(3, 8)), 7, "HEAD: wanted at most 7, got 8"),
            (faulty(7, word(3, "9" * 5000)), 7, "HEAD: wanted the ID of a word, or 0 for the root, got '999"),
            (faulty(7, word(3, 4, "root:x")), 7, "DEPREL: root stands with HEAD 0 and nowhere else, got 'root:x' with"),
            (faulty(8, word(4, 0, "rooted")), 8, "nowhere else, got 'rooted' with HEAD 0"),
            (faulty(7, word("3" * 5000, 4)), 7, "ID: wanted such as 3, 3-4 or 3.1, got '333"),
            (faulty(7, word("3-" + "3" * 5000, 4)), 7, "ID: wanted such as 3, 3-4 or 3.1, got '3-3"),
            (faulty(11, word("6." + "1" * 5000, "_")), 11, "ID: wanted such as 3, 3-4 or 3.1, got '6.1"),
            (faulty(8, word(4, 1)), 4, "HEAD: no word has 0, and the tree wants a root"),
            (faulty(7, word(3, 0, "root:x")), 8, "HEAD: word 4 is a second root beside word 3"),
            (faulty(12, word(7, 6)), 10, "HEAD: word 6 depends, through others, on itself"),
            (faulty(7, word(3, 3)), 7, "HEAD: word 3 depends, through others, on itself"),
            (faulty(7, word(3, 4, feats="Number")), 7, "FEATS: wanted NAME=VALUE with | between, got 'Number'"),
            (faulty(7, word(3, 4, feats="A=b||C=d")), 7, "FEATS: wanted NAME=VALUE with | between, got ''"),
            (faulty(7, word(3, 4, feats="A=b|A=c")), 7, "FEATS: A stands twice"),
            (faulty(7, "# late"), 7, "a comment inside a sentence"),
            ("# alone\n\n" + SENTENCE, 2, "a blank line after comments"),
            (SENTENCE + "# alone", 15, "a blank line after comments"),
            (word("1-2", "_"), 1, "a sentence without words"),
        ],
    )
    def test_one_line_with_file_and_line(self, tmp_path, text, line, told):
        path = tmp_path / "x.conllu"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError) as fault:
            conllu.read(path)
        message = str(fault.value)
        assert message.startswith(f"{path}:{line}: ") and told in message and "\n" not in message
        assert len(message) < len(str(path)) + 120

    def test_features_alone(self):
        with pytest.raises(ValueError, match="^FEATS: wanted NAME=VALUE with . between, got 'A'$"):
            conllu.features("A")

    def test_line_counts_through_the_sentences(self):
        with pytest.raises(ValueError, match="^text:20: wanted 10 columns"):
            conllu.parse(SENTENCE + faulty(7, word(3, 4, columns=9)))

    def test_bytes_that_are_no_utf8(self, tmp_path):
        path = tmp_path / "x.conllu"
        path.write_bytes(SENTENCE.encode() + word(1, 0, "root").replace("w", "é").encode("latin-1"))
        with pytest.raises(ValueError, match=r"x\.conllu:14: wanted UTF-8, got the byte 0xe9"):
            conllu.read(path)

    def test_missing_file(self, tmp_path):
        with pytest.raises(OSError):
            conllu.read(tmp_path / "x.conllu")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "x.conllu"
    path.write_bytes(b"\xef\xbb\xbf" + SENTENCE.encode())
    assert conllu.read(path)[0].comment("sent_id") == "a-1"
