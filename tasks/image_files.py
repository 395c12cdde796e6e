"""Where labelled images come from: published files, verified byte for byte, and folders of the user's own."""

import dataclasses
import gzip
import hashlib
import io
import tarfile
import zlib
from pathlib import Path

import numpy as np

from tasks.text import visible_files

HELD_OUT = 51  # of 256 values of a hash: a fifth of a folder's images are for the judgement
HALVES = ("validation", "valid", "val", "test")  # beside train/, in the order they are looked for
DIGIT_SHEETS = 1415  # digits on the first eleven of scikit-learn's fourteen sheets

# MD5 of each IDX file as it is published, and of what is in it; those of MNIST as torchvision has them.
IDX_MD5 = {
    "mnist": {
        "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
        "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
        "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
        "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
        "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
        "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
        "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
    },
}
IDX_CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
}
IDX_PLACES = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist",
    "fashion-mnist": "data/fashion of the GitHub repository zalandoresearch/fashion-mnist",
}

# MD5 of the binary archives as their page gives them, and of the files inside.
CIFAR_MD5 = {
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-batches-bin/data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "cifar-10-batches-bin/data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "cifar-10-batches-bin/data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "cifar-10-batches-bin/data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "cifar-10-batches-bin/data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "cifar-10-batches-bin/test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    "cifar-100-binary/train.bin": "6172c7755cfe09b2fe270c85cebc1b15",
    "cifar-100-binary/test.bin": "4499cfba6c016c1be1438163640a0898",
}
# Data set -> (the files of its two halves, class names, bytes before the pixels of an image, the last one its class).
CIFAR_FILES = {
    "cifar-10": (
        [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)],
        ["cifar-10-batches-bin/test_batch.bin"],
        "cifar-10-batches-bin/batches.meta.txt",
        1,
    ),
    "cifar-100": (
        ["cifar-100-binary/train.bin"],
        ["cifar-100-binary/test.bin"],
        "cifar-100-binary/fine_label_names.txt",
        2,  # its coarse class, of 20, comes first
    ),
}
CIFAR_PLACE = "the CIFAR page, https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled images, all of one size.

    Attributes:
      pixels: uint8 [images, rows, columns, channels].
      labels: int32 [images], index of the class.
    """

    pixels: np.ndarray
    labels: np.ndarray


def read_idx(content, name):
    """The array in an IDX file, the format of MNIST: 0, 0, 8 for bytes, the number of axes, their sizes, the bytes.

    Args:
      content: bytes of the file; sizes are big-endian int32.
      name: what an error calls it.

    Returns:
      uint8, of as many axes as the file says.

    Raises:
      ValueError: another format, or another number of bytes than the sizes say.

    >>> read_idx(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9]), "three.idx").tolist()
    [[7, 8, 9]]
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{name}: wanted an IDX file of bytes, which begins with 0, 0, 8, got {list(content[:3])}")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{name}: wanted an IDX header of {start} bytes, got {len(content)}; the file is cut off")
    sizes = np.frombuffer(content[4:start], ">i4")
    if sizes.prod(dtype=np.int64) != len(content) - start:
        raise ValueError(f"{name}: wanted {sizes.tolist()} bytes, got {len(content) - start}; the file is cut off")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def _digits(config):
    """The 1,797 digits of 8 x 8 pixels that scikit-learn brings along; the last three sheets are held out.

    They are the test half of Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI, written by 13
    people that wrote nothing of its training half. Nothing in the file says who wrote what, but the labels repeat one
    form's order fourteen times, about every 128 digits: they come sheet by sheet. So the cut is between two sheets, and
    at most one of the 13 people can be on both sides. Split at random, every hand is, and accuracy looks better.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)  # ink counts of 0 to 16
    labels = digits.target.astype(np.int32)
    halves = slice(None, DIGIT_SHEETS), slice(DIGIT_SHEETS, None)
    return tuple("0123456789"), *(Images(pixels[half], labels[half]) for half in halves)


def _idx(config):
    """MNIST or Fashion-MNIST, their published halves."""
    halves = []
    for half in ("train", "t10k"):
        pixels, labels = (_idx_file(config, f"{half}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        halves.append(Images(pixels[..., None], labels.astype(np.int32)))
    return IDX_CLASSES[config.name], *halves


def _idx_file(config, name):
    packed, unpacked = IDX_MD5[config.name][name]
    place = IDX_PLACES[config.name]
    path = _find(config, [f"{name}.gz", name], place)
    content = _verified(path, packed if path.suffix == ".gz" else unpacked, place)
    return read_idx(gzip.decompress(content) if path.suffix == ".gz" else content, path)


def _cifar(config):
    """CIFAR-10 or CIFAR-100 (its 100 fine classes), their published halves, from the binary version."""
    train, test, names, skipped = CIFAR_FILES[config.name]
    read = _cifar_reader(config)
    halves = []
    for files in (train, test):
        records = np.frombuffer(b"".join(map(read, files)), np.uint8).reshape(-1, skipped + 3 * 32 * 32)
        pixels = np.ascontiguousarray(records[:, skipped:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        halves.append(Images(pixels, records[:, skipped - 1].astype(np.int32)))
    return tuple(read(names).decode().split()), *halves


def _cifar_reader(config):
    """A function from a file's name to its bytes, unpacked or in the archive, either verified."""
    archive = f"{config.name}-binary.tar.gz"
    first = CIFAR_FILES[config.name][0][0]
    path = _find(config, [archive, first], CIFAR_PLACE)
    if path.name != archive:
        root = path.parents[1]
        return lambda name: _verified(root / name, CIFAR_MD5.get(name), CIFAR_PLACE)
    _verified(path, CIFAR_MD5[archive], CIFAR_PLACE)
    with tarfile.open(path) as opened:
        members = {member.name: opened.extractfile(member).read() for member in opened if member.isfile()}
    return members.__getitem__


def _find(config, names, place):
    """The first of the files that exists, in the data set's own folder under `dir` or in `dir` itself."""
    if not config.dir:
        raise ValueError(
            f"config.data.dir is empty, want the folder that holds {names[0]} of {config.name}: "
            f"--config.data.dir=DATA_DIR; it is at {place}"
        )
    root = Path(config.dir).expanduser()
    paths = [folder / name for folder in (root / config.name, root) for name in names]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise ValueError(f"{paths[0]} is missing, and so is {paths[len(names)]}; get it from {place}")
    return found


def _verified(path, md5, place):
    """Bytes of a published file, refused if they differ from what was published; None where nothing is known."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; get it from {place}")
    content = path.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != (md5 or found):
        raise ValueError(f"{path} is not the published file: MD5 {found}, want {md5}; get it from {place}")
    return content


def _own_folder(config):
    """Images in one folder a class, in train/ and one of HALVES beside it if these exist, else split by us.

    Of each class about a fifth is held out, chosen by a hash of the name, so that adding a file moves no other. Copies
    of a file count once, on the side of the judgement.
    """
    root = Path(config.path).expanduser()
    if not config.path or not root.is_dir():
        raise ValueError(f"config.data.path={config.path!r}: want a folder that holds one folder a class")
    if not config.image_size:
        raise ValueError(
            "config.data.image_size=0: a folder's images have many sizes; write --config.data.image_size=N"
        )
    held_root = next((root / name for name in HALVES if (root / name).is_dir()), None)
    if (root / "train").is_dir():
        if not held_root:  # else train/ and, say, dev/ would be two classes
            raise ValueError(
                f"config.data.path: {root} has train/ and beside it none of {', '.join(HALVES)}; "
                "rename the folder to judge on, or train/ where it is a class"
            )
        classes, seen = _class_folders(root / "train"), set()
        if unknown := set(_class_folders(held_root)) - set(classes):
            raise ValueError(f"{held_root / min(unknown)}: there is no class of that name in {root / 'train'}")
        held = _pictures(held_root, classes, config.image_size, seen)
        train = _pictures(root / "train", classes, config.image_size, seen)
    else:
        classes = _class_folders(root)
        halves = [_held_out(pictures) for pictures in _pictures(root, classes, config.image_size, set())]
        train, held = zip(*halves, strict=True)
    for name, *counts in zip(classes, map(len, train), map(len, held), strict=True):
        if not all(counts):
            raise ValueError(
                f"config.data.path: class {name!r} has {counts[0]} images to train on and {counts[1]} to judge on, "
                "copies counted once; want one of each or more"
            )
    return classes, _stack(train), _stack(held)


def _class_folders(root):
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise ValueError(f"config.data.path: {len(names)} folders in {root}, want one a class, two or more")
    return tuple(names)


def _pictures(root, classes, size, seen):
    """For each class a list of (hash of the name, pixels), ordered by hash; files in `seen` are left out."""
    from rich.console import Console
    from rich.progress import track

    files = []
    for label, name in enumerate(classes):
        for path in visible_files(root / name) if (root / name).is_dir() else []:
            rank = hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()
            files.append((rank, path, label))
    found = [[] for _ in classes]
    console = Console(stderr=True)
    quiet = len(files) < 1000 or not console.is_terminal
    for rank, path, label in track(sorted(files), "reading images", console=console, transient=True, disable=quiet):
        content = path.read_bytes()
        digest = hashlib.sha256(content).digest()
        if digest not in seen:
            seen.add(digest)
            found[label].append((rank, _picture(content, path, size)))
    return found


def _picture(content, path, size):
    """uint8 [size, size, 3]: the shorter side is resized to `size`, and the middle of the longer one is kept."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode!r}, want 8 bits a channel; convert it")
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC))
    except (OSError, ValueError, SyntaxError, zlib.error, Image.DecompressionBombError) as error:
        reason = "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{path} does not read as an image: {reason}; replace it or take it away") from error


def _held_out(pictures):
    """(to train on, to judge on): about a fifth by hash, at least one of each where there are two."""
    count = sum(rank[0] < HELD_OUT for rank, _ in pictures)  # they are in the order of the hash
    count = min(max(count, 1), len(pictures) - 1)
    return pictures[count:], pictures[:count]


def _stack(pictures):
    labels = np.repeat(np.arange(len(pictures), dtype=np.int32), [len(found) for found in pictures])
    return Images(np.stack([pixels for found in pictures for _, pixels in found]), labels)


# Name in `config.data.name` -> function of `config.data` that gives (class names, training images, validation images).
SOURCES = {
    "digits": _digits,
    "mnist": _idx,
    "fashion-mnist": _idx,
    "cifar-10": _cifar,
    "cifar-100": _cifar,
    "path": _own_folder,
}
