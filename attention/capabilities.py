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
      time: of one call, in the letters of the notation table.
      memory: of one call, beside the arguments and the result.
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


def _linear(sees, time, paper, arxiv, **other):
    """The linear family: sums in place of scores, hence nothing to add to and nothing to drop."""
    other = {"softmax": "replaced", "bias": False, "dropout": False, "decoding": "state"} | other
    return Capability(sees, time=time, memory="O(T N (H + Hv))", paper=paper, arxiv=arxiv, **other)


CAPABILITIES = {
    "dot_product_attention": Capability(
        "every key that mask, lengths and segments allow",
        *("exact", "O(T S), or the mask's live blocks", "O(T + S)"),
        *("Vaswani et al. 2017", "1706.03762"),
        cross=True,
        decoding="full cache; ring buffer for windows",
    ),
    "local_attention": Capability(
        "its own block of W tokens and its neighbours",
        *("exact", "O(T W)", "O(T)"),
        *("Parmar et al. 2018", "1802.05751"),
        decoding="full cache, or a ring buffer",
    ),
    "longformer_attention": Capability(
        "a window, and global tokens that see all and are seen by all",
        *("exact", "O(T (W + G))", "O(T)"),
        *("Beltagy et al. 2020", "2004.05150"),
        decoding="ring buffer and pinned global tokens",
        learned="optional global projections",
    ),
    "bigbird_attention": Capability(
        "blocks of b: its neighbours, both ends, R random ones",
        *("exact", "O(T b (5 + R))", "O(T (5 + R))"),
        *("Zaheer et al. 2020", "2007.14062"),
    ),
    "sparse_transformer_attention": Capability(
        "strided: `abs(i - j) < l` or `(i - j) % l == 0`; fixed: its block and all summaries",
        *("exact", "O(T (l + T / l))", "O(T sqrt T)"),
        *("Child et al. 2019", "1904.10509"),
    ),
    "lsh_attention": Capability(
        "keys that hash near it, in any of r rounds with chunks of m",
        *("approximated", "O(r T (m + log T))", "O(r T m)"),
        *("Kitaev et al. 2020", "2001.04451"),
        bias=False,
        decoding="",
    ),
    "linformer_attention": Capability(
        "R learned mixtures of the keys",
        *("approximated", "O(T R)", "O(T R)"),
        *("Wang et al. 2020", "2006.04768"),
        causal=False,
        packing=False,
        cross=True,
        bias=False,
        decoding="",
        learned="`key_projection`, `value_projection`",
    ),
    "performer_attention": _linear(
        "all keys, through M positive random features",
        *("O(T M (H + Hv))", "Choromanski et al. 2021", "2009.14794"),
        softmax="approximated",
        cross=True,
        learned="`projection` (random, not trained)",
    ),
    "linear_attention": _linear(
        "all keys: phi(q) sum phi(k) v / phi(q) sum phi(k)",
        *("O(T H Hv)", "Katharopoulos et al. 2020", "2006.16236"),
        cross=True,
    ),
    "efficient_attention": _linear(
        "H averages over all keys, one a feature",
        *("O(T H Hv)", "Shen et al. 2018", "1812.01243"),
        causal=False,
        cross=True,
        decoding="",
    ),
    "retention": _linear(
        "the past, fading at a fixed rate a head",
        *("O(T H Hv)", "Sun et al. 2023", "2307.08621"),
        bidirectional=False,
        learned="`decay` [N], optional",
    ),
    "gated_linear_attention": _linear(
        "the past, fading as each token says",
        *("O(T H Hv)", "Yang et al. 2024", "2312.06635"),
        bidirectional=False,
        learned="`log_decay` a token",
    ),
    "delta_rule_attention": _linear(
        "an associative memory that each token corrects",
        *("O(T H Hv)", "Schlag et al. 2021; Yang et al. 2024", "2102.11174"),
        bidirectional=False,
        learned="`beta` a token, optional `log_decay`",
    ),
}

MARKS = {True: "yes", False: "-", "": "-"}


def tables() -> str:
    """The README's two tables: what each function sees and costs, and what it can do.

    >>> tables().splitlines()[0]
    '| function | a query sees | softmax | time | memory | paper |'
    """
    costs = [
        (f"`{name}`", c.sees, c.softmax, c.time, c.memory, f"{c.paper}, [{c.arxiv}](https://arxiv.org/abs/{c.arxiv})")
        for name, c in CAPABILITIES.items()
    ]
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
    titles = "causal", "both sides", "padding", "packing", "cross", "bias", "dropout", "decodes from", "extra arrays"
    return "\n\n".join(
        [
            _table(("function", "a query sees", "softmax", "time", "memory", "paper"), costs),
            _table(("function", *titles), abilities),
        ]
    )


def _table(titles, rows):
    lines = [titles, ["---"] * len(titles), *([str(MARKS.get(cell, cell)) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(tables())
