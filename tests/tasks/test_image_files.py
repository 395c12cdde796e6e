"""Image files: published formats written small, damage that is refused, and folders of the user's own."""

import gzip
import hashlib
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from tasks import image_files, images
from tests.tasks.test_images import data_config


def bytes_of(*shape, seed=0, high=256):
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint8)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def md5(content):
    return hashlib.md5(content).hexdigest()


def test_digits_are_cut_between_two_sheets():
    corpus = images.load(data_config())
    assert (len(corpus.train.labels), len(corpus.validation.labels)) == (1415, 382)
    sheet = corpus.train.labels[:40].tolist()  # every sheet begins with the same digits
    assert sheet[:30] == [*range(10)] * 3 and corpus.validation.labels[:40].tolist() == sheet
    assert corpus.train.pixels.shape == (1415, 8, 8, 1) and corpus.train.pixels.max() == 255
    assert corpus.sha256.startswith("f9843b81586a8674")


class TestIdx:
    PARTS = {"train": (bytes_of(7, 5, 5), bytes_of(7, high=10)), "t10k": (bytes_of(3, 5, 5), bytes_of(3, high=10))}

    @pytest.fixture
    def write(self, tmp_path, monkeypatch):
        """Writes the four files, plain or packed, and makes their checksums the published ones."""

        def write(name="mnist", folder="", packed=True):
            table = {}
            (tmp_path / folder).mkdir(exist_ok=True)
            for half, (pixels, labels) in self.PARTS.items():
                for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
                    plain = idx(array)
                    content = gzip.compress(plain)
                    table[f"{half}-{kind}-ubyte"] = md5(content), md5(plain)
                    path = tmp_path / folder / f"{half}-{kind}-ubyte{'.gz' if packed else ''}"
                    path.write_bytes(content if packed else plain)
            monkeypatch.setitem(image_files.IDX_MD5, name, table)
            return data_config(name=name, dir=str(tmp_path))

        return write

    @pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
    @pytest.mark.parametrize("folder", ["", "own"])
    @pytest.mark.parametrize("packed", [True, False])
    def test_published_halves_in_either_form(self, write, name, folder, packed):
        corpus = images.load(write(name, folder and name, packed))
        for half, found in zip(self.PARTS.values(), (corpus.train, corpus.validation), strict=True):
            np.testing.assert_array_equal(found.pixels[..., 0], half[0])
            np.testing.assert_array_equal(found.labels, half[1])
        assert len(corpus.classes) == 10

    def test_another_file_is_refused(self, write, tmp_path):
        config, path = write(), tmp_path / "t10k-labels-idx1-ubyte.gz"
        path.write_bytes(gzip.compress(idx(bytes_of(3))))
        with pytest.raises(ValueError, match=f"{path} is not the published file: MD5 .*, want .*get it from https"):
            images.load(config)

    def test_a_missing_file_is_named(self, write, tmp_path):
        config = write()
        (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
        with pytest.raises(ValueError, match=f"{tmp_path}/mnist/train-labels-idx1-ubyte.gz is missing, and so is"):
            images.load(config)

    @pytest.mark.parametrize(
        "content, message",
        [
            (b"", "which begins with 0, 0, 8, got \\[\\]"),
            (b"\x1f\x8b\x08\0", "begins with 0, 0, 8, got \\[31, 139, 8\\]"),
            (bytes([0, 0, 13, 1, 0, 0, 0, 0]), "got \\[0, 0, 13\\]"),  # floats
            (bytes([0, 0, 8, 3, 0, 0, 0, 9]), "header of 16 bytes, got 8; the file is cut off"),
            (idx(bytes_of(3, 2, 2))[:-1], "wanted \\[3, 2, 2\\] bytes, got 11; the file is cut off"),
        ],
    )
    def test_another_format_is_refused(self, content, message):
        with pytest.raises(ValueError, match=f"x.idx: .*{message}"):
            image_files.read_idx(content, "x.idx")

    def test_the_published_checksums_are_32_hexadecimal_digits_each_once(self):
        found = [one for table in image_files.IDX_MD5.values() for pair in table.values() for one in pair]
        found += image_files.CIFAR_MD5.values()
        assert len(found) == len(set(found)) == 26 and {len(bytes.fromhex(one)) for one in found} == {16}


class TestCifar:
    def contents(self, name):
        """{file: records}, and what is in them: (pixels [n, rows, columns, channels], labels)."""
        train, test, names, skipped = image_files.CIFAR_FILES[name]
        files, halves = {names: "\n".join(f"class{i}" for i in range(10)).encode() + b"\n\n"}, []
        for seed, part in enumerate((train, test)):
            pixels, labels = bytes_of(2 * len(part), 32, 32, 3, seed=seed), bytes_of(2 * len(part), high=10, seed=seed)
            halves.append((pixels, labels))
            for i, file in enumerate(part):
                rows = [
                    bytes([99] * (skipped - 1) + [labels[j]]) + pixels[j].transpose(2, 0, 1).tobytes()
                    for j in (2 * i, 2 * i + 1)
                ]
                files[file] = b"".join(rows)
        return files, halves

    @pytest.mark.parametrize("name", ["cifar-10", "cifar-100"])
    @pytest.mark.parametrize("packed", [True, False])
    def test_published_halves_in_either_form(self, tmp_path, monkeypatch, name, packed):
        files, halves = self.contents(name)
        if packed:
            path = tmp_path / f"{name}-binary.tar.gz"
            with tarfile.open(path, "w:gz") as archive:
                for file, content in files.items():
                    member = tarfile.TarInfo(file)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            monkeypatch.setitem(image_files.CIFAR_MD5, path.name, md5(path.read_bytes()))
        else:
            for file, content in files.items():
                (tmp_path / file).parent.mkdir(exist_ok=True)
                (tmp_path / file).write_bytes(content)
                if file.endswith(".bin"):
                    monkeypatch.setitem(image_files.CIFAR_MD5, file, md5(content))
        corpus = images.load(data_config(name=name, dir=str(tmp_path)))
        for (pixels, labels), found in zip(halves, (corpus.train, corpus.validation), strict=True):
            np.testing.assert_array_equal(found.pixels, pixels)
            np.testing.assert_array_equal(found.labels, labels)
        assert corpus.classes == tuple(f"class{i}" for i in range(10))

    def test_a_changed_or_missing_file_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=f"{tmp_path}/cifar-10/cifar-10-binary.tar.gz is missing.*kriz/cifar"):
            images.load(data_config(name="cifar-10", dir=str(tmp_path)))
        (tmp_path / "cifar-100-binary.tar.gz").write_bytes(b"torn")
        with pytest.raises(ValueError, match="cifar-100-binary.tar.gz is not the published file: MD5"):
            images.load(data_config(name="cifar-100", dir=str(tmp_path)))


def save(path, color=(10, 20, 30), size=(9, 7), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)


class TestOwnFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        """Two classes of twenty flat images each, a hidden file, and copies within a class and across."""
        for red, name in ((50, "cat"), (200, "dog")):
            for i in range(20):
                save(tmp_path / name / ("inner" * (i % 2)) / f"{i}.png", (red, i * 10, 0), (9 + i, 7))
            save(tmp_path / name / "copy.png", (50, 30, 0), (12, 7))  # like cat/inner/3.png
            (tmp_path / name / ".hidden").write_bytes(b"secret")
        return tmp_path

    def colors(self, part):
        assert (part.pixels == part.pixels[:, :1, :1]).all()
        return {tuple(color): label for color, label in zip(part.pixels[:, 0, 0].tolist(), part.labels, strict=True)}

    def test_each_image_is_on_one_side_once(self, folder):
        corpus = images.load(data_config(path=str(folder), image_size=5))
        train, held = self.colors(corpus.train), self.colors(corpus.validation)
        want = {(red, i * 10, 0): label for label, red in enumerate((50, 200)) for i in range(20)}
        assert train | held == want and not set(train) & set(held)
        assert len(corpus.train.labels) + len(corpus.validation.labels) == 40 and 4 <= len(held) <= 14
        assert corpus.classes == ("cat", "dog") and corpus.train.pixels.shape[1:] == (5, 5, 3)

    def test_another_file_moves_none(self, folder):
        before = images.load(data_config(path=str(folder), image_size=5))
        save(folder / "cat" / "new.png", (1, 2, 3))
        after = images.load(data_config(path=str(folder), image_size=5))
        new = {(1, 2, 3)}
        for old, now in ((before.train, after.train), (before.validation, after.validation)):
            assert set(self.colors(now)) - new == set(self.colors(old))
        assert new <= set(self.colors(after.train)) | set(self.colors(after.validation))
        assert before.sha256 != after.sha256

    @pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
    def test_the_user_s_own_split_is_kept(self, folder, tmp_path, name):
        for i in range(3):
            for color, kind in ((60, "cat"), (90, "dog")):
                save(folder / "root" / "train" / kind / f"{i}.png", (color, i, 0))
                save(folder / "root" / name / kind / f"{i}.png", (color, i, 9 if i else 0))  # the first is a copy
        corpus = images.load(data_config(path=str(folder / "root"), image_size=4))
        assert self.colors(corpus.validation) == {
            (c, i, 9 if i else 0): k for k, c in enumerate((60, 90)) for i in range(3)
        }
        assert self.colors(corpus.train) == {(c, i, 0): k for k, c in enumerate((60, 90)) for i in (1, 2)}

    def test_the_middle_is_kept_and_the_shorter_side_resized(self, tmp_path):
        stripes = np.zeros((4, 24, 3), np.uint8)
        stripes[:, 6:18] = 255  # the middle is 10 to 14, and the filter reaches 4 pixels further
        for name in ("a", "b"):
            for i in range(2):
                (tmp_path / name).mkdir(exist_ok=True)
                stripes[0, 0] = ord(name), i, 0  # in the corner that is cut away: the files differ
                Image.fromarray(stripes).save(tmp_path / name / f"{i}.png")
        corpus = images.load(data_config(path=str(tmp_path), image_size=2))
        assert (corpus.train.pixels == 255).all() and corpus.train.pixels.shape == (2, 2, 2, 3)

    @pytest.mark.parametrize(
        "mode, color", [("L", 77), ("1", 1), ("RGBA", (9, 8, 7, 255)), ("P", 3), ("CMYK", (1, 2, 3, 4))]
    )
    def test_other_modes_become_red_green_blue(self, tmp_path, mode, color):
        for name in ("a", "b"):
            for i in range(2):
                suffix = "tiff" if mode == "CMYK" else "png"
                save(tmp_path / name / f"{i}.{suffix}", color, (5 + i + 2 * (name == "b"), 5), mode)
        assert images.load(data_config(path=str(tmp_path), image_size=3)).train.pixels.shape == (2, 3, 3, 3)

    @pytest.mark.parametrize("damage", ["text", "torn", "deep"])
    def test_what_does_not_read_is_named_in_one_line(self, folder, damage):
        path = folder / "dog" / "bad.png"
        if damage == "text":
            path.write_text("not an image")
        elif damage == "torn":
            noise = io.BytesIO()
            Image.fromarray(bytes_of(40, 40, 3)).save(noise, "png")
            path.write_bytes(noise.getvalue()[:900])
        else:
            Image.fromarray(np.full((5, 5), 60000, np.uint16)).save(path)
        with pytest.raises(ValueError) as caught:
            images.load(data_config(path=str(folder), image_size=5))
        assert str(caught.value).startswith(f"{path} does not read as an image: ") and "\n" not in str(caught.value)

    def test_a_class_without_a_second_image_is_refused(self, folder):
        save(folder / "owl" / "1.png")
        with pytest.raises(ValueError, match="class 'owl' has 1 images to train on and 0 to judge on"):
            images.load(data_config(path=str(folder), image_size=5))

    def test_a_class_nobody_trained_on_is_refused(self, tmp_path):
        for name in ("train/a", "train/b", "val/a", "val/c"):
            save(tmp_path / name / "1.png")
        with pytest.raises(ValueError, match="val/c: there is no class of that name in .*train"):
            images.load(data_config(path=str(tmp_path), image_size=5))

    def test_training_images_alone_are_refused(self, tmp_path):
        """Without a word train/ and dev/ would be two classes."""
        for name in ("train/a", "train/b", "dev/a", "dev/b"):
            for i in range(2):
                save(tmp_path / name / f"{i}.png", (i, len(name), ord(name[-1])))
        with pytest.raises(ValueError, match="has train/ and beside it none of validation, valid, val, test; rename"):
            images.load(data_config(path=str(tmp_path), image_size=5))

    def test_one_class_is_refused(self, tmp_path):
        save(tmp_path / "a" / "1.png")
        with pytest.raises(ValueError, match="1 folders in .*, want one a class, two or more"):
            images.load(data_config(path=str(tmp_path), image_size=5))
