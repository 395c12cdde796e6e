"""What a model is asked to do, one file per task family: the data, the loss and the metric.

A task is a module with these names; `train.py` and `eval.py` know no others.

    METRIC                  {"name": "validation ...", "higher_is_better"}
    MODELS                  names in `config.model.name` that can learn it
    VOCABULARY              how many tokens there are
    load(config.data)       -> corpus, the same for the same files; whatever is wrong with them is found here.
                            `corpus.sha256` is its fingerprint
    describe(corpus, length)
                            -> what `data.json` keeps: "sha256", sizes, and the "baselines" of models without a network
    fields(corpus)          -> the fields of `config.model` that the data decide, such as the number of classes
    batch(corpus, seed, step, batch_size, length)
                            -> {name: array [batch_size, ...]}, training examples of a step; a pure function, so
                            that training goes on after a stop without replaying anything
    validation(corpus, length)
                            -> ({name: array [rows, ...]}, owners [rows]): every example of the judgement, and the index
                            of the piece (a file, a review) it comes from. The error bar is the spread over pieces
    score(model, examples, rng=None)
                            -> (loss, metric, weight), float32 [rows] each: sums over what a row asks. Training lowers
                            sum(loss) / sum(weight), in nats; the metric is sum(metric) / sum(weight)

`model` in `score` is a decoder, `model(tokens, rng=rng) -> [B, T, vocabulary]`, an encoder,
`model(tokens, key_mask=..., rng=rng) -> [B, classes]` or `[B, T, vocabulary]`, or an encoder-decoder,
`model(source, target, rng=rng) -> [B, T, vocabulary]`; training gives `rng`, a judgement none.
"""

from tasks import classification, masked_text, rewriting, text

# Name in `config.task` -> its module.
TASKS = {"text": text, "masked_text": masked_text, "classification": classification, "rewriting": rewriting}
