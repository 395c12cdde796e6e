"""Twelve kinds of causal attention, one small language model, one budget, on the source code of Python's own library.

python train.py                                              # everything below; no download
python train.py --config.data.path=FILE_OR_FOLDER            # your own text
python train.py --config.data.name=tinyshakespeare --config.data.dir=DATA_DIR
python train.py --config.only=full,window --config.seeds=3   # part of it, with an error bar over seeds
python train.py --config.model.width=512 --config.model.depth=8 --config.train.steps=20000   # on a real machine

Measured by the first command on 2026-11-24, two cores (AMD EPYC), 10 minutes, one seed; validation bits per byte,
standard error over files 0.05 to 0.08: sparse_transformer 2.713, gated_linear 2.727, window 2.738, local 2.779,
longformer 2.794, bigbird 2.897, full 2.983, lsh 2.999, retention 3.096, delta_rule 3.191, performer 3.389, linear
3.436; bigrams 3.558.
"""

from ml_collections import ConfigDict

from configs.parts import attention


def get_config() -> ConfigDict:
    """The defaults of every field; a flag `--config.FIELD=VALUE` changes one."""
    config = ConfigDict()
    config.task = "text"
    config.seed = 0  # first seed: initial weights, data order, dropout
    config.seeds = 1  # how many seeds; with more than one the error bar is over seeds
    config.only = ""  # labels to train now, comma-separated; empty = all

    config.data = ConfigDict()
    config.data.name = "python_stdlib"  # or path, tinyshakespeare, wikitext-2
    config.data.path = ""  # a file or folder of your own
    config.data.dir = ""  # where the published data sets lie
    config.data.length = 512  # T, the context in bytes
    config.data.validation_bytes = 131_072  # of held-out text that the final metric is computed on

    config.model = ConfigDict()
    config.model.name = "transformer"
    config.model.vocab_size = 256
    config.model.width = 128
    config.model.depth = 2
    config.model.num_heads = 4
    config.model.num_kv_heads = 4
    config.model.mlp_width = 512
    config.model.mlp_chunks = 1  # slices of all tokens that the MLP computes one after the other, to save memory
    config.model.norm = "rms"  # or layer
    config.model.norm_epsilon = 1e-6
    config.model.use_bias = False  # in the projections of attention and MLP
    config.model.activation = "gelu_tanh"  # or gelu, relu
    config.model.position = "rope"
    config.model.rope_base = 10_000.0
    config.model.rope_scaling = ConfigDict()
    config.model.t5_buckets = 32
    config.model.t5_max_distance = 128
    config.model.dropout = 0.0
    config.model.attention_dropout = 0.0
    config.model.dtype = "float32"
    config.model.tie_embeddings = True
    config.model.scan_layers = False  # a loop over two layers compiles no faster and runs 20% slower
    config.model.remat = False  # keep only each layer's input, recompute the rest in the backward pass
    config.model.reversible = False  # keep not even that, always in a loop (Reformer)
    config.model.attention = ConfigDict({"name": "full"})
    # For tasks whose texts come with a graph: a branch of graph attention in every layer, {"name": "graph", "score":
    # "dot_product"}; distances in the graph that scores tell apart; kinds of edges, 0 = as the data have.
    config.model.graph_attention = ConfigDict()
    config.model.graph_bias = 0
    config.model.num_relations = 0

    config.train = ConfigDict()
    config.train.steps = 250
    config.train.batch_size = 2  # windows of T bytes a step, split over the devices; small, so that steps are many
    config.train.accumulate = 1  # parts the batch is computed in, one after the other
    config.train.optimizer = "muon"  # or adamw
    config.train.learning_rate = 0.01
    config.train.warmup_steps = 20
    config.train.final_fraction = 0.1  # of the learning rate, at the end of the cosine
    config.train.weight_decay = 0.1
    config.train.beta1 = 0.9
    config.train.beta2 = 0.95
    config.train.clip_norm = 1.0
    config.train.evaluate_every = 25
    config.train.evaluate_examples = 32  # of the validation examples, looked at on the way
    config.train.checkpoint_every = 50
    config.train.keep_checkpoints = 2
    config.train.patience = 0  # looks at development data without a better one until training stops; 0 = never

    config.scaling = ConfigDict()
    config.scaling.lengths = (512, 1024, 2048, 4096)  # where one attention layer is timed, alone
    config.scaling.batch_size = 1
    config.scaling.seconds = 15.0  # per variant; longer lengths that would not fit are left out

    config.variants = ConfigDict(
        {
            "full": attention("full"),
            "window": attention("window", window=64),
            "local": attention("local", window=64, neighbours=1),
            "longformer": attention("longformer", window=64, dilation=1, num_global=8, global_projections=0),
            "sparse_transformer": attention(
                "sparse_transformer", pattern="strided", stride=32, summary=0, heads="merged", summary_per_head=0
            ),
            "bigbird": attention("bigbird", block_size=32, num_random_blocks=2, num_global_blocks=1, seed=0),
            "lsh": attention("lsh", num_hashes=2, bucket_size=32, num_buckets=0, correct_duplicates=0, seed=0),
            "linear": attention("linear", chunk_size=64, feature_map="elu_plus_one"),
            "performer": attention("performer", num_features=64, kernel="softmax", redraw=0, seed=0),
            "retention": attention("retention", chunk_size=64),
            "gated_linear": attention("gated_linear", chunk_size=64),
            "delta_rule": attention("delta_rule", chunk_size=64),
        },
        sort_keys=False,  # the table keeps this order
    )
    return config
