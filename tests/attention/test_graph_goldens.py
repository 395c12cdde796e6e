"""GAT and GATv2 against the numbers of torch_geometric: outputs, attention weights and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import GOLDENS, assert_matches, load

from attention import gat_attention, gatv2_attention

CASES = sorted(path.stem for path in GOLDENS.glob("gat*.npz"))


def test_all_cases_are_here():
    assert len(CASES) == 8


def edge_attributes(attributes, arrays, num_nodes):
    """As the peer lists them: existing self-loops removed, one a node appended with the mean of its incoming edges."""
    senders, receivers = arrays["aux.edge_index"]
    loop = senders == receivers
    attributes, receivers = attributes[~loop], receivers[~loop]
    counts = np.bincount(receivers, minlength=num_nodes)[:, None]
    mean = jnp.zeros((num_nodes, attributes.shape[1])).at[receivers].add(attributes) / np.maximum(counts, 1)
    return jnp.concatenate([attributes, mean])


def layer(case, arrays, meta, weights):
    """The peer's layer, `[nodes, features]`, and the weights of its edges, from arrays by the peer's names."""
    heads, width = meta["attrs"]["heads"], meta["attrs"]["out_channels"]
    x, ends = weights["in.x"], arrays["aux.edge_index_used"]

    def project(x, name):
        return (x @ weights[f"w.{name}.weight"].T + weights.get(f"w.{name}.bias", 0)).reshape(-1, heads, width)

    edges = None
    if "in.edge_attr" in weights:
        edges = project(edge_attributes(weights["in.edge_attr"], arrays, len(x)), "lin_edge")
    if case.startswith("gatv2"):
        sender_nodes = project(x, "lin_l")
        receiver_nodes = project(x, "lin_r") if "w.lin_r.weight" in weights else sender_nodes
        nodes, vectors, settings = (sender_nodes, receiver_nodes), (weights["w.att"][0],), {"edge_features": edges}
    else:
        nodes, vectors = (project(x, "lin"),), (weights["w.att_src"][0], weights["w.att_dst"][0])
        settings = {"edge_scores": None if edges is None else (edges * weights["w.att_edge"][0]).sum(-1)}
    attend = gatv2_attention if case.startswith("gatv2") else gat_attention
    out, alpha = attend(*nodes, *ends, *vectors, **settings, return_weights=True)
    out = out.reshape(len(x), -1) if meta["attrs"]["concat"] else out.mean(1)
    return out + weights["w.bias"], alpha


@pytest.mark.parametrize("case", CASES)
def test_torch_geometric(case):
    arrays, meta = load(case)
    names = [name for name in arrays if name.startswith(("in.", "w."))]

    def fn(*given):
        return layer(case, arrays, meta, dict(zip(names, given, strict=True)))[0]

    given, gradients = [arrays[n] for n in names], [arrays[f"grad.{n}"] for n in names]
    assert_matches(fn, given, arrays["cot"], arrays["out"], gradients, meta["f32_vs_f64_max_abs"])
    _, alpha = jax.jit(lambda weights: layer(case, arrays, meta, weights))(dict(zip(names, given, strict=True)))
    np.testing.assert_allclose(alpha, arrays["aux.alpha"], rtol=1e-5, atol=1e-7)
