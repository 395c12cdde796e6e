"""What a model is asked to do, one file per task family: the data, the loss and the metric.

A task is a module with these names; `train.py` and `eval.py` know no others.

    METRIC                  {"name": "validation ...", "higher_is_better"}
    MODELS                  names in `config.model.name` that can learn it
    VOCABULARY              how many tokens there are, at least; 0 where the input is no tokens. A task that reads
                            `config.data.vocabulary` has as many as that says
    DATA                    the fields of `config.data` that it reads, all of them
    SIZE                    the one of them that is the size of an example: "length", T tokens of text, "image_size",
                            rows and columns of an image, "num_nodes" of a graph, or "questions" about one. The
                            functions below call it `length`; 0 leaves it to `fields`
    UNIT                    what speed is counted in: what an example consists of ("tokens", "nodes", "questions"), or
                            whole examples ("images")
    tokens(length)          -> how many tokens, pixels or nodes an example has
    load(config.data)       -> corpus, the same for the same files; whatever is wrong with them is found here.
                            `corpus.sha256` is its fingerprint
    describe(corpus, length)
                            -> what `data.json` keeps: "sha256", sizes, the "baselines" of models without a network,
                            and the "ceilings" of rules that know what a model must find out, where there are any
    fields(corpus)          -> the fields of the config that the data decide, such as {"model.num_classes": 10}
    batch(corpus, seed, step, batch_size, length)
                            -> {name: array [batch_size, ...]}, training examples of a step; a pure function, so
                            that training goes on after a stop without replaying anything. A task that gives the very
                            same object at each step, such as one whole graph, has it copied to the device once
    validation(corpus, length)
                            -> ({name: array [rows, ...]}, owners [rows]): every example of the judgement, and the index
                            of the piece (a file, a review) it comes from. The error bar is the spread over pieces
    score(model, examples, rng=None)
                            -> (loss, count, metric, weight), float32, sums over what a row asks. loss and count [rows]:
                            training lowers sum(loss) / sum(count), in nats. metric and weight [rows] or [rows, K]: the
                            metric is sum(metric) / sum(weight), the mean over K of them

What a task may leave out:

    development(corpus, length)
                            -> as `validation`: examples apart from the judgement, which are looked at on the way and
                            decide when training stops (`config.train.patience`). Without them a part of the judgement
                            is looked at, and nothing may be decided by it
    groups(corpus, length)  -> {name: (labels, index int [rows])}: how the rows of `validation` fall into groups, such
                            as {"distance": (["1", "2", "3 or more"], index)}; -1 = in none. comparison.json gives each
                            variant "groups", {name: [{"label", "mean", "stderr", "stderr_over", "size"}]}, in the order
                            of the labels; size is the sum of `count`. groups.csv holds the same
    details(model, corpus, length)
                            -> {name: float}: further numbers of a judged model, for "details" in comparison.json,
                            {name: {"mean", "stderr", "values"}} over seeds
    profile(model, examples)
                            -> as `score`, but [rows, T]: what it sums, place by place. eval.py draws it by position
    pictures(model, corpus, length)
                            -> {name: array} of a few examples for the report to show: "images" and what was answered,
                            or, for sentences, "words" text [n, T], "heads" int [n, T] (place of each word's head, -1
                            the root, -2 padding), "asked" int [n] (place of the word in question), "attention" float
                            [n, T] (the share that this word pays to each), "labels", "answers" int [n], "confidence"
                            [n]

`model` in `score` is a decoder, `model(tokens, rng=rng) -> [B, T, vocabulary]`, an encoder,
`model(tokens, key_mask=..., rng=rng) -> [B, classes]` or `[B, T, vocabulary]`, an encoder-decoder,
`model(source, target, rng=rng) -> [B, T, vocabulary]`, two towers,
`model(first, second, first_mask=..., second_mask=..., rng=rng) -> [B, classes]`, an image model,
`model(images, rng=rng) -> [B, classes]` or `[B, height, width, classes]`, or a graph network,
`model(nodes, edges, rng=rng) -> [B, V, classes]`; training gives `rng`, a judgement none.
"""

import importlib
from collections.abc import Mapping


class _Tasks(Mapping):
    """Name in `config.task` -> its module, imported when it is asked for: a run waits for its own task alone."""

    names = (
        "text",
        "masked_text",
        "classification",
        "rewriting",
        "images",
        "scenes",
        "graphs",
        "dictionary_lookup",
        "knowledge_graph",
        "syntax",
        "recall",
        "needle_classification",
        "listops",
        "pathfinder",
        "pixels",
        "retrieval",
    )

    def __getitem__(self, name):
        if name not in self.names:
            raise KeyError(name)
        return importlib.import_module(f"tasks.{name}")

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)


TASKS = _Tasks()
