"""What each attention function can do and what it costs: one table, which the README prints and the tests hold true.

python -m attention.capabilities     # the tables of the README, as Markdown
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Capability:
    """One attention function. A False means that the function refuses, not that it ignores.

    Args:
      sees: what a query sees.
      softmax: "exact", "approximated", or "replaced" by something that is not a softmax.
      time: of one call, for each batch entry and head, in the letters of the notation table and the function's own.
      memory: of one call, beside the arguments and the result, likewise.
      paper: authors and year.
      arxiv: its number.
      causal: has a form in which no query looks ahead.
      bidirectional: has a form in which queries see both sides.
      padding: honours `key_mask`.
      packing: keeps documents apart (`query_segment_ids`, `key_segment_ids`).
      cross: takes another number of keys than of queries.
      bias: adds a bias to its scores.
      dropout: drops attention weights.
      decoding: the state it decodes from, token by token; "" = it cannot.
      learned: arrays it takes beside query, key and value; "" = none.
    """

    sees: str
    softmax: str
    time: str
    memory: str
    paper: str
    arxiv: str
    causal: bool = True
    bidirectional: bool = True
    padding: bool = True
    packing: bool = True
    cross: bool = False
    bias: bool = True
    dropout: bool = True
    decoding: str = "full cache"
    learned: str = ""


@dataclass(frozen=True)
class GraphCapability:
    """One attention function of edge lists, `senders` and `receivers`: all are exact softmaxes over incoming edges.

    Args:
      score: of an edge, in the names of the arguments.
      edges: the arrays that edges may bring, beside `edge_mask` for padding.
      two_kinds: senders and receivers may be nodes of two kinds, with arrays of their own.
      heads: fewer heads of keys than of queries.
      memory: of one call and of its gradient, beside the arguments and the result.
      paper: authors and year.
      arxiv: its number.
    """

    score: str
    edges: str
    paper: str
    arxiv: str
    two_kinds: bool = True
    heads: bool = False
    memory: str = "O(V N H + E N)"


def _linear(**given):
    """The linear family: sums in place of scores, hence nothing to add to and nothing to drop."""
    family = {"softmax": "replaced", "time": "O((T + S) H Hv)", "memory": "O((T + S) (H + Hv))"}
    return Capability(**family | {"bias": False, "dropout": False, "decoding": "state"} | given)


CAPABILITIES = {
    "dot_product_attention": Capability(
        sees="every key that mask, lengths and segments allow",
        softmax="exact",
        time="O(T S), or the mask's live blocks",
        memory="O(T + S)",
        paper="Vaswani et al. 2017",
        arxiv="1706.03762",
        cross=True,
        decoding="full cache; ring buffer for windows",
    ),
    "local_attention": Capability(
        sees="its own block of `window` tokens and its neighbours",
        softmax="exact",
        time="O(T window)",
        memory="O(T)",
        paper="Parmar et al. 2018",
        arxiv="1802.05751",
        decoding="ring buffer",
    ),
    "longformer_attention": Capability(
        sees="a window, and `G` global tokens that see all and are seen by all",
        softmax="exact",
        time="O(T (window dilation + G))",
        memory="O(T)",
        paper="Beltagy et al. 2020",
        arxiv="2004.05150",
        decoding="ring buffer with the global tokens pinned, if they come first; else full cache",
        learned="`global_query`, `global_key`, `global_value`, optional",
    ),
    "bigbird_attention": Capability(
        sees="blocks: its neighbours, `g` at both ends, `R` random ones",
        softmax="exact",
        time="O(T block_size (3 + 2 g + R))",
        memory="O(T)",
        paper="Zaheer et al. 2020",
        arxiv="2007.14062",
        decoding="full cache, if no block is listed twice and no token is global",
    ),
    "sparse_transformer_attention": Capability(
        sees="strided: `abs(i - j) < stride` or `(i - j) % stride == 0`; fixed: its block and all summaries",
        softmax="exact",
        time="O(T (stride + T / stride)); fixed: O(T (stride + T summary / stride))",
        memory="as time",
        paper="Child et al. 2019",
        arxiv="1904.10509",
    ),
    "axial_attention": Capability(
        sees="the line through it along one axis of a grid, or `span` pixels of that line",
        softmax="exact",
        time="O(pixels length); with a span O(pixels span)",
        memory="O(pixels); with tables as time",
        paper="Ho et al. 2019; Wang et al. 2020",
        arxiv="2003.07853",
        packing=False,
        bias=False,
        decoding="",
        learned="`query_table`, `key_table`, `value_table`, optional",
    ),
    "shifted_window_attention": Capability(
        sees="the `window` x `window` pixels of its window, whose grid may be shifted",
        softmax="exact",
        time="O(pixels window^2)",
        memory="as time",
        paper="Liu et al. 2021",
        arxiv="2103.14030",
        causal=False,
        packing=False,
        decoding="",
    ),
    "lsh_attention": Capability(
        sees="tokens whose hash is near its own, in any of several rounds",
        softmax="approximated",
        time="O(num_hashes T (bucket_size + F)), F = T / bucket_size, its root beyond 128 buckets",
        memory="as time",
        paper="Kitaev et al. 2020",
        arxiv="2001.04451",
        bias=False,
        decoding="",
    ),
    "linformer_attention": Capability(
        sees="`R` learned mixtures of the keys",
        softmax="approximated",
        time="O((T + S) R)",
        memory="O(T + S + R)",
        paper="Wang et al. 2020",
        arxiv="2006.04768",
        causal=False,
        packing=False,
        cross=True,
        bias=False,
        decoding="",
        learned="`key_projection`, `value_projection`",
    ),
    "performer_attention": _linear(
        sees="all keys, through `M` positive random features",
        softmax="approximated",
        time="O((T + S) M (H + Hv))",
        memory="O((T + S) M)",
        paper="Choromanski et al. 2021",
        arxiv="2009.14794",
        cross=True,
        learned="`projection`, random, not trained",
    ),
    "linear_attention": _linear(
        sees="all keys: phi(q) sum phi(k) v / phi(q) sum phi(k)",
        paper="Katharopoulos et al. 2020",
        arxiv="2006.16236",
        cross=True,
    ),
    "efficient_attention": _linear(
        sees="`H` averages over all keys, one a feature",
        paper="Shen et al. 2018",
        arxiv="1812.01243",
        causal=False,
        cross=True,
        decoding="",
    ),
    "retention": _linear(
        sees="the past, fading at a fixed rate a head",
        paper="Sun et al. 2023",
        arxiv="2307.08621",
        bidirectional=False,
        learned="`decay`, optional",
    ),
    "gated_linear_attention": _linear(
        sees="the past, fading as each token says",
        paper="Yang et al. 2024",
        arxiv="2312.06635",
        bidirectional=False,
        learned="`log_decay`",
    ),
    "delta_rule_attention": _linear(
        sees="an associative memory that each token corrects",
        paper="Schlag et al. 2021; Yang et al. 2024",
        arxiv="2102.11174",
        bidirectional=False,
        learned="`beta`, and optional `log_decay`",
    ),
}

GRAPH_CAPABILITIES = {
    "gat_attention": GraphCapability(
        score="leaky_relu(`sender_vector` . sender + `receiver_vector` . receiver + `edge_scores`)",
        edges="`edge_scores`",
        paper="Velickovic et al. 2018",
        arxiv="1710.10903",
        two_kinds=False,
    ),
    "gatv2_attention": GraphCapability(
        score="`vector` . leaky_relu(sender + receiver + `edge_features`)",
        edges="`edge_features`",
        paper="Brody et al. 2022",
        arxiv="2105.14491",
    ),
    "graph_dot_product_attention": GraphCapability(
        score="`scale` * `query` . (`key` + `edge_features`) + `edge_scores`",
        edges="`edge_scores`, `edge_features`",
        paper="Shi et al. 2021",
        arxiv="2009.03509",
        heads=True,
    ),
}

GRAPH_TITLES = "score of an edge", "arrays of edges", "two kinds of nodes", "fewer key heads"
MARKS = {True: "yes", False: "-", "": "-"}


def tables() -> str:
    """The README's tables: what each function sees and costs, what it can do, and the functions of edge lists.

    >>> tables().splitlines()[0]
    '| function | a query sees | softmax | time | memory | paper |'
    """
    costs = [(f"`{name}`", c.sees, c.softmax, c.time, c.memory, _paper(c)) for name, c in CAPABILITIES.items()]
    abilities = [
        (
            f"`{name}`",
            c.causal,
            c.bidirectional,
            c.padding,
            c.packing,
            c.cross,
            c.bias,
            c.dropout,
            c.decoding,
            c.learned,
        )
        for name, c in CAPABILITIES.items()
    ]
    graphs = [
        (f"`{name}`", c.score, c.edges, c.two_kinds, c.heads, "O((V + E) N H)", c.memory, _paper(c))
        for name, c in GRAPH_CAPABILITIES.items()
    ]
    titles = "causal", "both sides", "padding", "packing", "cross", "bias", "dropout", "decodes from", "extra arrays"
    return "\n\n".join(
        [
            _table(("function", "a query sees", "softmax", "time", "memory", "paper"), costs),
            _table(("function", *titles), abilities),
            _table(("needs edge lists", *GRAPH_TITLES, "time", "memory", "paper"), graphs),
        ]
    )


def _paper(capability):
    return f"{capability.paper}, [{capability.arxiv}](https://arxiv.org/abs/{capability.arxiv})"


def _table(titles, rows):
    lines = [titles, ["---"] * len(titles), *([str(MARKS.get(cell, cell)) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(tables())
