"""GAT on a citation graph, by the published recipe: Cora, and others in the same format.

python train.py --config=configs/cora_gat.py --config.data.dir=DIR        # DIR or DIR/cora holds Planetoid's ind.cora.*
python train.py --config=configs/cora_gat.py --config.data.name=citeseer --config.data.dir=DIR --workdir=runs/citeseer
python train.py --config=configs/cora_gat.py --config.data.name=pubmed --config.data.dir=DIR --workdir=runs/pubmed \
    --config.model.num_heads="(8, 8)" --config.train.learning_rate=0.01 --config.train.weight_decay=0.001
python train.py --config=configs/cora_gat.py --config.data.name=path --config.data.path=FILE_OR_FOLDER     # your own

Velickovic et al. 2018, "Graph Attention Networks", arXiv:1710.10903, section 3.3: 83.0 +- 0.7 % on Cora, 72.5 +- 0.7 %
on Citeseer, 79.0 +- 0.3 % on Pubmed, standard deviations over 100 runs. Training stops when neither accuracy nor loss
on the development nodes has been as good as its best for 100 steps; the test nodes are judged with the weights of the
last step at which both were.

Measured by the first command on 2026-11-24, AMD EPYC, one core of two, ten seeds: 83.14 % of the 1,000 test nodes,
standard deviation 0.84, standard error 0.27; stopped after 726 to 1,207 steps of about 32 ms.
Another number of cores sums in another order, and a seed ends elsewhere: the first is 82.8 % on one, 83.2 % on two.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Every field with its default; a flag `--config.FIELD=VALUE` changes one."""
    config = ConfigDict()
    config.task = "graphs"
    config.seed = 0  # first seed: initial weights, dropout
    config.seeds = 10  # how many seeds; with more than one the error bar is over seeds
    config.only = ""  # labels to train now, comma-separated; empty = all

    config.data = ConfigDict()
    config.data.name = "cora"  # or citeseer, pubmed, digits, path
    config.data.path = ""  # a graph of your own: an .npz file or a folder
    config.data.dir = ""  # where the published files lie
    config.data.num_nodes = 0  # as the data have
    config.data.num_neighbours = 0  # of nodes without edges; 0 = 8, where the data have none
    config.data.labels_per_class = 0  # nodes trained on; 0 = as the data say

    config.model = ConfigDict()
    config.model.name = "graph_network"
    config.model.num_features = 0  # as the data have
    config.model.num_classes = 0
    config.model.num_relations = 0  # all edges are alike
    config.model.input_width = 0  # no projection before the first layer
    config.model.num_heads = (8, 1)  # of each layer; those of the last are averaged
    config.model.head_dim = (8,)  # features of a head; those of the last layer are the classes
    config.model.readout = False
    config.model.activation = "elu"
    config.model.residual = False
    config.model.self_loops = True
    config.model.dropout = 0.6  # of inputs and of what is summed
    config.model.attention_dropout = 0.6
    config.model.dtype = "float32"
    config.model.attention = ConfigDict({"name": "gat"})

    config.train = ConfigDict()
    config.train.steps = 10_000  # more than patience has ever left
    config.train.batch_size = 1  # the whole graph
    config.train.accumulate = 1
    config.train.optimizer = "adam"  # with weight decay as L2 penalty in the loss, on all parameters
    config.train.learning_rate = 0.005
    config.train.warmup_steps = 0
    config.train.final_fraction = 1.0  # a constant rate
    config.train.weight_decay = 5e-4
    config.train.beta1 = 0.9
    config.train.beta2 = 0.999
    config.train.clip_norm = float("inf")
    config.train.evaluate_every = 1
    config.train.evaluate_examples = 1000  # graphs of development, all of them
    config.train.checkpoint_every = 200
    config.train.keep_checkpoints = 2
    config.train.patience = 100  # evaluations

    config.scaling = ConfigDict()
    config.scaling.lengths = (1024, 4096, 16384)  # nodes, with ten edges each
    config.scaling.batch_size = 1
    config.scaling.seconds = 5.0

    config.variants = ConfigDict()
    return config
