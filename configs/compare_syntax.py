"""Does structure help? Positions and graph attention in one small encoder, on the grammar of real sentences.

python train.py --config=configs/compare_syntax.py --config.data.dir=DATA_DIR                 # number agreement
python train.py --config=configs/compare_syntax.py --config.data.dir=DATA_DIR --config.seeds=3
python train.py --config=configs/compare_syntax.py --config.data.path=UD_German-GSD           # another language
python train.py --config=configs/compare_syntax.py --config.data.dir=DATA_DIR --config.data.question=pos \
    --workdir=runs/syntax_pos                                                        # or features, relations
python train.py --config=configs/compare_syntax.py --config.data.dir=DATA_DIR --config.data.tree=unlabelled \
    --workdir=runs/syntax_gold                                                       # or labelled; see tasks/syntax.py

DATA_DIR holds a Universal Dependencies treebank (universaldependencies.org), as UD_English-EWT. Three variants know
places by their distance (rope, alibi, t5), one by nothing (none). graph attends along the edges of the dependency tree
and sees nothing else, no order either; rope_graph adds that as a branch to the layers of rope; rope_distance adds a
learned number for each distance in the tree to the scores of rope. mlp_width makes up for what a variant has beside.

"subject" is an upper line: it knows the tree and the number of the subject. The questions of number agreement are also
about verbs whose form shows no number, such as the English past tense but "was" and "were"; see tasks/syntax.py.
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
