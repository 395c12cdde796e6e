"""Where the files of a Universal Dependencies treebank lie, and reading them."""

from pathlib import Path

from tasks import conllu

WHERE = (
    "get a treebank from universaldependencies.org, such as UD_English-EWT with en_ewt-ud-train.conllu, "
    "en_ewt-ud-dev.conllu and en_ewt-ud-test.conllu"
)


def read(config):
    """The sentences of the treebank that `config.data` names.

    Args:
      config: `dir`, a folder with the treebank's files or with the treebank's folder, or `path`, the treebank's folder,
        one of its files or what their names begin with.

    Returns:
      (its name, such as "en_ewt", training sentences, sentences of the development and test files together).

    Raises:
      ValueError: neither or both of the two, no treebank there or several, a file that is not right.
      OSError: a file cannot be read.
    """
    if config.dir and config.path:
        raise ValueError(f"config.data.path={config.path!r}: config.data.dir names another place; drop one of the two")
    if not config.dir and not config.path:
        raise ValueError(
            f"config.data.dir is empty: wanted the folder that holds a treebank; {WHERE}, and write "
            "--config.data.dir=FOLDER"
        )
    prefix = _prefix(config)
    parts = [
        [
            sentence
            for path in sorted(prefix.parent.glob(f"{prefix.name}-ud-{part}*.conllu"))
            for sentence in conllu.read(path)
        ]
        for part in ("train", "dev", "test")
    ]
    for part, sentences in (("train", parts[0]), ("test", parts[1] + parts[2])):
        if not sentences:
            raise ValueError(f"{prefix}-ud-{part}.conllu is missing or has no sentence; {WHERE}")
    return prefix.name, parts[0], parts[1] + parts[2]


def _prefix(config):
    """The one path that, with "-ud-train.conllu" behind it, is a file of the treebank."""
    field, written = ("path", config.path) if config.path else ("dir", config.dir)
    place = Path(written).expanduser()
    if config.path and not place.is_dir():
        begin = place.with_name(place.name.rpartition("-ud-")[0] or place.name)  # of a file, what its name begins with
        whole = begin.parent.glob(f"{begin.name}-ud-train*.conllu") if begin == place or place.is_file() else ()
        found = [*whole] or place.parent.glob(f"{place.name}*-ud-train*.conllu")
        wanted = f"{begin}-ud-train.conllu"
    elif config.path:
        found, wanted = place.glob("*-ud-train*.conllu"), place / "*-ud-train.conllu"
    else:
        found = [*place.glob("*-ud-train*.conllu"), *place.glob("*/*-ud-train*.conllu")]
        wanted = place / "*" / "*-ud-train.conllu"
    prefixes = sorted({path.parent / path.name.rpartition("-ud-train")[0] for path in found})
    if not prefixes:
        raise ValueError(f"config.data.{field}={written!r}: no treebank there, wanted {wanted}; {WHERE}")
    if len(prefixes) > 1:
        names = ", ".join(map(str, prefixes))
        raise ValueError(
            f"config.data.{field}={written!r}: several treebanks, {names}; write --config.data.path={prefixes[0]}"
        )
    return prefixes[0]
