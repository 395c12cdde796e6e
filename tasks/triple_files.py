"""Knowledge graphs as lists of triples: WN18RR, folders in its format, and a generated one of people and their kin."""

import hashlib
import random
import tarfile
import zlib
from pathlib import Path

SPLITS = {"train": "train.txt", "development": "valid.txt", "test": "test.txt"}
WN18RR = "WN18RR (Dettmers et al. 2018), WN18RR.tar.gz of github.com/TimDettmers/ConvE"
SHA256 = {  # of the published files
    "train.txt": "038612e783c215ee5f3ca9fbfca27b8d0739be1028fe4ee7c174aecf0b83d5df",
    "valid.txt": "453ce7202afa58094a04d2b1560ee2b02660f1c260b32ce6651c8ccedd1028ab",
    "test.txt": "0383bceaaa1096cf3c03ec021ed0048068e2355dbfc0239b292cefdac821cec5",
}
COUPLES, GENERATIONS, MOST_CHILDREN = 40, 4, 4  # of the generated graph
HELD_OUT = 10  # one fact in so many is judged, and one looked at on the way


def read_wn18rr(dir):
    """The published WN18RR from a folder that holds its three files or its archive, which is not unpacked to disk.

    Args:
      dir: the folder, or the one above its `WN18RR` or `kg-wn18rr`.

    Returns:
      {split: [(subject, relation, object), ...]} for each of SPLITS.

    Raises:
      ValueError: no folder, files that are missing, do not read or are not the published ones.
    """
    if not dir:
        raise ValueError(f"config.data.dir is empty, want the folder that holds {WN18RR}: --config.data.dir=DATA_DIR")
    contents = _published(Path(dir).expanduser())
    for (where, name), content in contents.items():
        found = hashlib.sha256(content).hexdigest()
        if found != SHA256[name]:
            raise ValueError(
                f"{where}: not the published {name}: wanted sha256 {SHA256[name]}, got {found}; get {WN18RR}, "
                "or read files of your own with --config.data.path=FOLDER"
            )
    return _parsed({name: (where, content) for (where, name), content in contents.items()})


def read_folder(path):
    """The user's own triples: train.txt, valid.txt and test.txt of lines `subject<TAB>relation<TAB>object`.

    Args:
      path: the folder.

    Returns:
      {split: [(subject, relation, object), ...]} for each of SPLITS; names are kept as they are written.

    Raises:
      ValueError: no such folder or file, or a fault in one, named with its line.
    """
    root = Path(path).expanduser()
    contents = {}
    for name in SPLITS.values():
        if not (root / name).is_file():
            raise ValueError(
                f"{root / name} is missing: config.data.path wants {', '.join(SPLITS.values())} in a folder"
            )
        contents[name] = str(root / name), (root / name).read_bytes()
    return _parsed(contents)


def _published(root):
    """{(where it lies, name): bytes} of the three files."""
    places = [place for place in (root, root / "WN18RR", root / "kg-wn18rr") if place.is_dir()]
    for place in places:
        if (place / "train.txt").is_file():
            missing = [place / name for name in SPLITS.values() if not (place / name).is_file()]
            if missing:
                raise ValueError(f"{missing[0]} is missing; get {WN18RR}")
            return {(str(place / name), name): (place / name).read_bytes() for name in SPLITS.values()}
    archive = next((place / "WN18RR.tar.gz" for place in places if (place / "WN18RR.tar.gz").is_file()), None)
    if archive is None:
        raise ValueError(f"{root / 'WN18RR.tar.gz'} is missing, and so is {root / 'train.txt'}; get {WN18RR}")
    try:
        with tarfile.open(archive) as opened:
            found = {
                (f"{archive}:{member.name}", Path(member.name).name): opened.extractfile(member).read()
                for member in opened
                if member.isfile() and Path(member.name).name in SHA256
            }
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{archive} does not read: {error}; get {WN18RR}") from error
    if missing := SHA256.keys() - {name for _, name in found}:
        raise ValueError(f"{archive}: no {', '.join(sorted(missing))} in it; get {WN18RR}")
    return found


def _parsed(contents):
    """{split: triples} from {file name: (where it lies, bytes)}; a fact may stand once, in one of the files."""
    seen, kinds, splits = {}, set(), {}
    for split, name in SPLITS.items():
        where, content = contents[name]
        splits[split] = []
        for number, line in enumerate(content.split(b"\n"), 1):
            if not line.strip():
                continue
            place = f"{where} line {number}"
            fact = _fact(line, place)
            if fact in seen:
                raise ValueError(f"{place}: {' '.join(fact)} stands in {seen[fact]}, too; drop one of the two")
            if split == "train":
                kinds.add(fact[1])
            elif fact[1] not in kinds:
                raise ValueError(f"{place}: no training fact has the relation {fact[1]!r}; drop the line or add some")
            seen[fact] = place
            splits[split].append(fact)
        if not splits[split]:
            raise ValueError(f"{where}: wanted lines subject<TAB>relation<TAB>object, got none")
    return splits


def _fact(line, place):
    try:
        fields = line.decode().rstrip("\r").split("\t")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8") from None
    if len(fields) != 3 or not all(field.strip() for field in fields):
        raise ValueError(f"{place}: wanted subject<TAB>relation<TAB>object, got {line.decode()!r}")
    return tuple(fields)


def kinship(seed=0):
    """A made-up population of four generations and how its people are related; a graph that needs no file.

    Most relations follow from others along paths of two or three edges: a grandmother is a parent's mother, a cousin an
    aunt's or uncle's child. One fact in ten is judged and one in ten looked at on the way, so that most can be told
    from what is left, by who combines edges. No relation is the inverse of another, and of a relation that goes
    both ways (spouse, sibling, cousin) one direction stands: else the other would give it away.

    Args:
      seed: of the population.

    Returns:
      {split: [(subject, relation, object), ...]} for each of SPLITS.
    """
    draw = random.Random(seed).random  # alone of its methods promised to give the same in every version of Python
    mother, father, spouse, children = {}, {}, {}, {}
    women, men = ([f"{name}0_{i}" for i in range(COUPLES)] for name in "wm")
    for generation in range(1, GENERATIONS + 1):
        couples = _married(women, men, mother, draw)
        spouse |= dict(couples)
        women, men = [], []
        for wife, husband in couples if generation < GENERATIONS else []:
            brood = children[wife] = []
            for _ in range(1 + int(MOST_CHILDREN * draw())):
                group, letter = (women, "w") if draw() < 0.5 else (men, "m")
                group.append(f"{letter}{generation}_{len(group)}")
                brood.append(group[-1])
                mother[group[-1]], father[group[-1]] = wife, husband
    facts = _shuffled(_kin(mother, father, spouse, children), draw)
    return {"test": facts[::HELD_OUT], "development": facts[1::HELD_OUT]} | {
        "train": [fact for i, fact in enumerate(facts) if i % HELD_OUT > 1]
    }


def _married(women, men, mother, draw):
    """Couples at random, no siblings."""
    men = _shuffled(men, draw)
    couples = []
    for woman in _shuffled(women, draw):
        match = next((man for man in men if mother.get(man, man) != mother.get(woman, woman)), None)
        if match is not None:
            men.remove(match)
            couples.append((woman, match))
    return couples


def _shuffled(items, draw):
    return sorted(items, key=lambda _: draw())


def _kin(mother, father, spouse, children):
    """Every fact that follows from who is whose mother, father and spouse, as (subject, relation, object).

    Args:
      mother: person -> mother, of all but the first generation.
      father: likewise.
      spouse: wife -> husband.
      children: wife -> children.
    """
    parents = {child: (mother[child], father[child]) for child in mother}
    siblings = {child: [other for other in children[mother[child]] if other != child] for child in mother}
    aunts = {child: sorted({x for parent in parents[child] for x in siblings.get(parent, ())}) for child in mother}
    brood = children | {spouse[wife]: children[wife] for wife in children}  # of either parent
    facts = [(child, "mother", mother[child]) for child in mother]
    facts += [(child, "father", father[child]) for child in mother]
    facts += [(wife, "spouse", husband) for wife, husband in spouse.items()]
    for child in mother:
        facts += [(child, "sibling", other) for other in siblings[child] if child < other]
        facts += [(child, "aunt or uncle", aunt) for aunt in aunts[child]]
        for parent in parents[child]:
            facts += [(child, "grandmother", mother[parent])] if parent in mother else []
            facts += [(child, "grandfather", father[parent])] if parent in father else []
        cousins = {cousin for aunt in aunts[child] for cousin in brood.get(aunt, ()) if child < cousin}
        facts += [(child, "cousin", cousin) for cousin in sorted(cousins)]
    return sorted(set(facts))
