"""Does structure help? Positions and graph attention in one small encoder, on the grammar of real sentences.

python train.py --config=configs/compare_syntax.py --config.data.dir=DATA_DIR                 # number agreement
python train.py --config=configs/compare_syntax.py --config.data.dir=DATA_DIR --config.seeds=3
python train.py --config=configs/compare_syntax.py --config.data.path=UD_German-GSD           # another language
python train.py --config=configs/compare_syntax.py --config.data.dir=DATA_DIR --config.data.question=pos \
    --workdir=runs/syntax_pos                                                        # or features, relations
python train.py --config=configs/compare_syntax.py --config.data.dir=DATA_DIR --config.data.tree=unlabelled \
    --workdir=runs/syntax_gold                                                       # or labelled

DATA_DIR holds a Universal Dependencies treebank (universaldependencies.org), as UD_English-EWT. Three variants know
places by their distance (rope, alibi, t5), one by nothing (none). graph attends along the edges of the dependency tree
and sees nothing else, no order either; rope_graph adds that as a branch to the layers of rope; rope_distance adds a
learned number for each distance in the tree to the scores of rope. mlp_width makes up for what a variant has beside.
The trees of tree="predicted" are by a parser trained on the spot, and kept under ~/.cache/attention-atlas;
tasks/syntax_corpus.py says what each kind of tree gives away.

"subject" is an upper line: it knows the tree and the number of the subject. "nearest noun" also reads the annotators'
number of the nouns, which the models must tell from the words. The questions of number agreement are also about verbs
whose form shows no number, such as the English past tense but "was" and "were"; see tasks/syntax_corpus.py.

Measured by the second command, and with --config.data.tree=unlabelled, on 2026-11-29, AMD EPYC, one core each, 13 and
10 minutes, three seeds, standard errors over seeds in the report; English-EWT, 2,156 questions: 1,615 where subject and
verb are neighbours, 291 at a distance of 3 to 7 words, 61 with one attractor, 31 with more. The parser's heads are
right for 0.692 of the words.

    tree          variant          all       distance 1  3-4    5-7    8 and more  0 attractors  1      2 and more
    none          rope             0.887     0.932       0.718  0.634  0.753       0.909         0.377  0.398
    none          alibi            0.868     0.902       0.729  0.713  0.694       0.885         0.514  0.419
    none          t5               0.880     0.924       0.720  0.690  0.753       0.900         0.443  0.398
    none          none             0.803     0.828       0.699  0.662  0.737       0.818         0.536  0.387
    predicted     graph            0.837     0.866       0.705  0.681  0.704       0.849         0.634  0.452
    predicted     rope_graph       0.891     0.939       0.703  0.676  0.737       0.914         0.388  0.312
    predicted     rope_distance    0.886     0.929       0.712  0.704  0.715       0.908         0.404  0.398
    annotators'   graph            0.861     0.884       0.744  0.764  0.763       0.869         0.721  0.613
    annotators'   rope_graph       0.894     0.937       0.715  0.685  0.780       0.915         0.437  0.398
    annotators'   rope_distance    0.892     0.937       0.728  0.690  0.720       0.913         0.448  0.409
    lines: majority 0.717, nearest noun 0.905, subject 0.924; standard errors of "all" 0.001 to 0.007

What becomes of three claims. "RoPE is the standard": it is the best kind of positions here, by 0.019 +- 0.003 before
ALiBi; before T5 by 0.007 +- 0.004, which is not resolved. "ALiBi is steadier": where 5 to 7 words or an attractor stand
between, it is 0.08 and 0.14 above RoPE, and pays for it with neighbours. "Graph attention is the most precise about
grammar": where structure and order disagree, yes: with one attractor 0.634 (the parser's tree) and 0.721 (the
annotators') beside 0.377; in all it is worse than any kind of positions, for most verbs stand next to their subject.
Adding the tree to RoPE gains 0.004 +- 0.002 (the parser's) or 0.007 +- 0.004 (the annotators') and does not bring the
steadiness of the tree alone. No variant is as good as the nearest noun, which is told what they must learn.

Other questions with the parser's tree on the same day, one seed, standard error over sentences 0.002:
    relations  rope 0.802, alibi 0.733, t5 0.806, none 0.661, graph 0.791, rope_graph 0.825, rope_distance 0.816; the
               word alone 0.619; the parser's heads 0.747
    features   rope 0.879, alibi 0.853, t5 0.880, none 0.823, graph 0.863, rope_graph 0.886, rope_distance 0.886; the
               word alone 0.809
So for relations, which are about structure, the tree is worth 0.023 beside RoPE, though a parser guessed it.
"""

from ml_collections import ConfigDict

from configs import compare_text


def get_config() -> ConfigDict:
    """The fields of `compare_text`, changed for questions about words; a flag `--config.FIELD=VALUE` changes one."""
    config = compare_text.get_config()
    config.task = "syntax"
    config.data = ConfigDict()
    config.data.name = "ud"
    config.data.path = ""  # a treebank's folder, or what its files' names begin with
    config.data.dir = ""  # a folder that holds the folder of one
    config.data.length = 48  # T, the most words of a sentence
    config.data.question = "agreement"  # or pos, features, relations
    config.data.tree = "predicted"  # by a parser trained on the spot; or unlabelled, labelled: the annotators'

    config.model.name = "encoder"
    config.model.vocab_size = 2048
    config.model.pool = "tokens"
    config.model.num_classes = 0  # as many as the data have
    config.model.width = 64
    config.model.depth = 2
    config.model.num_heads = 4
    config.model.num_kv_heads = 4
    config.model.mlp_width = 256
    config.model.dropout = 0.2

    config.train.steps = 1000
    config.train.batch_size = 32
    config.train.optimizer = "adamw"
    config.train.learning_rate = 0.004
    config.train.warmup_steps = 50
    config.train.evaluate_every = 100
    config.train.evaluate_examples = 512
    config.train.checkpoint_every = 300

    config.scaling.lengths = (48, 96, 192)
    config.scaling.seconds = 5.0

    branch = {"name": "graph", "score": "dot_product"}
    config.variants = ConfigDict(
        {
            "rope": _model(position="rope"),
            "alibi": _model(position="alibi"),
            "t5": _model(position="t5"),
            "none": _model(position="none"),
            "graph": _model(position="none", attention=branch),
            "rope_graph": _model(position="rope", graph_attention=branch, mlp_width=128),
            "rope_distance": _model(position="rope", graph_bias=8),
        },
        sort_keys=False,  # the table keeps this order
    )
    return config


def _model(**fields):
    """What a variant changes."""
    return {"model": fields}
