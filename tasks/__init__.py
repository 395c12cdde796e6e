"""What a model is asked to do, one file per task family: the data, the loss and the metric.

A task is a module with these names; `train.py` and `eval.py` know no others.

    METRIC                  {"name": "validation ...", "higher_is_better"}
    MODELS                  names in `config.model.name` that can learn it
    VOCABULARY              how many tokens there are; 0 where the input is no tokens
    DATA                    the fields of `config.data` that it reads, all of them
    SIZE                    the one of them that is the size of an example: "length", T tokens of text, or "image_size",
                            rows and columns of an image. The functions below call it `length`
    UNIT                    what speed is counted in: "tokens" or "images"
    tokens(length)          -> how many tokens or pixels an example has
    load(config.data)       -> corpus, the same for the same files; whatever is wrong with them is found here.
                            `corpus.sha256` is its fingerprint
    describe(corpus, length)
                            -> what `data.json` keeps: "sha256", sizes, and the "baselines" of models without a network
    fields(corpus)          -> the fields of the config that the data decide, such as {"model.num_classes": 10}
    batch(corpus, seed, step, batch_size, length)
                            -> {name: array [batch_size, ...]}, training examples of a step; a pure function, so
                            that training goes on after a stop without replaying anything
    validation(corpus, length)
                            -> ({name: array [rows, ...]}, owners [rows]): every example of the judgement, and the index
                            of the piece (a file, a review) it comes from. The error bar is the spread over pieces
    score(model, examples, rng=None)
                            -> (loss, count, metric, weight), float32, sums over what a row asks. loss and count [rows]:
                            training lowers sum(loss) / sum(count), in nats. metric and weight [rows] or [rows, K]: the
                            metric is sum(metric) / sum(weight), the mean over K of them
    pictures(model, corpus, length)
                            -> {name: array} of a few examples for the report to show; left out where there are none

`model` in `score` is a decoder, `model(tokens, rng=rng) -> [B, T, vocabulary]`, an encoder,
`model(tokens, key_mask=..., rng=rng) -> [B, classes]` or `[B, T, vocabulary]`, an encoder-decoder,
`model(source, target, rng=rng) -> [B, T, vocabulary]`, or an image model, `model(images, rng=rng) -> [B, classes]` or
`[B, height, width, classes]`; training gives `rng`, a judgement none.
"""

from tasks import classification, images, masked_text, rewriting, scenes, text

# Name in `config.task` -> its module.
TASKS = {
    "text": text,
    "masked_text": masked_text,
    "classification": classification,
    "rewriting": rewriting,
    "images": images,
    "scenes": scenes,
}
