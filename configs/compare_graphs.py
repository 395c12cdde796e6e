"""Kinds of graph layers under one budget: GAT, GATv2, dot products, GCN, and GAT's layer without attention.

python train.py --config=configs/compare_graphs.py                        # the neighbours of digits, no data needed
python train.py --config=configs/compare_graphs.py --config.data.name=cora --config.data.dir=DIR --config.seeds=10 \
    --workdir=runs/compare_cora

All have the recipe of configs/cora_gat.py and as many features; GATv2 and dot products share one projection between
senders and receivers, so that all have as many parameters, but for the few of the scores. "constant" is GAT's layer
with equal weights, "mean" that with one head and, as GCN has, no dropout but that of the inputs; "gcn" differs from
"mean" in the weights alone, which go by the degrees of both ends.

Cora, the second command on 2026-11-29, AMD EPYC, one core, 18 minutes for all, 17 of CPU time; test accuracy and
standard error over ten seeds: gatv2 0.8335 +- 0.0026, constant 0.8331 +- 0.0017, gat 0.8316 +- 0.0026 (paper 0.830 +-
0.007), dot_product 0.8295 +- 0.0012, mean 0.8284 +- 0.0015, gcn 0.8247 +- 0.0022; label propagation 0.713. Seed by
seed GAT is 0.0069 +- 0.0032 above GCN. A gain of attention does not show: GAT is 0.0015 +- 0.0036 below its layer with
equal weights. Of GAT's lead over GCN heads and dropout make 0.0047 +- 0.0017 (constant over mean), the plain mean
0.0037 +- 0.0029 (mean over gcn).

Digits, the first command on the same day, one core, 9 minutes, three seeds: constant 0.943 +- 0.002, dot_product 0.937
+- 0.003, mean 0.935 +- 0.004, gat 0.934 +- 0.002, gatv2 0.933 +- 0.005, gcn 0.925 +- 0.003; label propagation, which
trains nothing, 0.949.
"""

from ml_collections import ConfigDict

from configs import cora_gat
from configs.parts import attention


def get_config() -> ConfigDict:
    """The fields of `cora_gat`, with variants; a flag `--config.FIELD=VALUE` changes one."""
    config = cora_gat.get_config()
    config.seeds = 3
    config.data.name = "digits"  # or cora, citeseer, pubmed, path
    one = {"num_heads": (1, 1), "head_dim": (64,), "attention_dropout": 0.0}  # 64 features, as 8 heads of 8
    config.variants = ConfigDict(
        {
            "gat": attention("gat"),
            "gatv2": attention("gatv2", share_weights=1),
            "dot_product": attention("dot_product", share_weights=1),
            "constant": attention("constant"),  # all neighbours alike
            "mean": {"model": one | {"attention": {"name": "constant"}}},  # that with one head, as GCN has
            "gcn": {"model": one | {"attention": {"name": "gcn"}}},  # the mean of unlike weights: by degrees
        },
        sort_keys=False,  # the table keeps this order
    )
    return config
