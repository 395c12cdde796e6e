"""Kinds of graph layers under one budget: GAT, GATv2, dot products, GCN, and GAT's layer without attention.

python train.py --config=configs/compare_graphs.py                        # the neighbours of digits, no data needed
python train.py --config=configs/compare_graphs.py --config.data.name=cora --config.data.dir=DIR --config.seeds=10 \
    --workdir=runs/compare_cora

All have the recipe of configs/cora_gat.py and as many features; GATv2 and dot products share one projection between
senders and receivers, so that all have as many parameters, but for the few of the scores. GCN has but the dropout of
inputs.

Cora, the second command with --config.only=gat,gcn,constant on 2026-11-24, AMD EPYC, one core of two; test accuracy and
standard error over ten seeds: constant 0.8331 +- 0.0017, gat 0.8314 +- 0.0027, gcn 0.8247 +- 0.0022. GAT stands above
GCN by 0.7 points, 1.9 standard errors, but so does its layer without attention: a gain of attention itself does not
show on this graph. What the two share and GCN lacks is a plain mean, eight heads, and dropout at two more places.
"""

from ml_collections import ConfigDict

from configs import cora_gat


def get_config() -> ConfigDict:
    """The fields of `cora_gat`, with variants; a flag `--config.FIELD=VALUE` changes one."""
    config = cora_gat.get_config()
    config.seeds = 3
    config.data.name = "digits"  # or cora, citeseer, pubmed, path
    one = {"num_heads": (1, 1), "head_dim": (64,), "attention_dropout": 0.0}  # 64 features, as 8 heads of 8
    config.variants = ConfigDict(
        {
            "gat": _attention("gat"),
            "gatv2": _attention("gatv2", share_weights=1),
            "dot_product": _attention("dot_product", share_weights=1),
            "constant": _attention("constant"),  # all neighbours alike
            "mean": {"model": one | {"attention": {"name": "constant"}}},  # that with one head, as GCN has
            "gcn": {"model": one | {"attention": {"name": "gcn"}}},  # the mean of unlike weights: by degrees
        },
        sort_keys=False,  # the table keeps this order
    )
    return config


def _attention(name, **settings):
    return {"model": {"attention": {"name": name, **settings}}}
