"""The configs of pixels and of retrieval: every variant builds at every size, and a tiny run ends with its report."""

import pytest

import train
from configs import lra_image, lra_retrieval
from experiment import settings
from experiment.records import read_arrays, read_json
from tasks import TASKS

VARIANTS = {
    lra_image: "full window local longformer bigbird strided fixed lsh linear efficient performer linformer",
    lra_retrieval: "full window longformer bigbird linear performer",
}


@pytest.mark.parametrize("module", VARIANTS)
@pytest.mark.parametrize("size", ["small", "published"])
def test_every_variant_passes(module, size):
    config = module.get_config(size)
    settings.check(config)
    assert list(settings.variants(config)) == VARIANTS[module].split()
    assert config == module.get_config(size) and (size == "published" or config == module.get_config())


@pytest.mark.parametrize("module", VARIANTS)
def test_an_unknown_size_is_refused(module):
    with pytest.raises(ValueError, match="'large' behind the colon: want one of small, published, or no colon"):
        module.get_config("large")


def test_published_sizes():
    image, retrieval = (module.get_config("published") for module in (lra_image, lra_retrieval))
    sizes = [(c.model.depth, c.model.width, c.model.num_heads, c.model.mlp_width) for c in (image, retrieval)]
    assert sizes == [(3, 64, 4, 128), (4, 128, 4, 512)]
    assert (image.data.length, image.data.name, image.train.steps) == (1024, "cifar-10", 200 * (45_000 // 256))
    assert (retrieval.data.length, retrieval.data.name, retrieval.train.steps) == (4096, "aan", 5000)


def test_windows_and_strides_are_lines_of_the_image():
    for size, line in (("small", 8), ("published", 32)):
        found = settings.variants(lra_image.get_config(size))
        assert found["strided"].model.attention.stride == found["window"].model.attention.window == line
        assert line**2 == found["full"].data.length


TINY = [
    *("--config.model.width=8", "--config.model.depth=1", "--config.model.num_heads=2", "--config.model.mlp_width=8"),
    *("--config.model.num_kv_heads=1", "--config.train.steps=3", "--config.train.warmup_steps=1"),
    *("--config.train.evaluate_every=3", "--config.train.checkpoint_every=3", "--config.scaling.lengths=(4, 9, 16)"),
    "--config.scaling.seconds=600.0",  # a busy machine leaves no length out
]


def run(module, workdir, *flags):
    name = module.__name__.rpartition(".")[2]
    assert train.main(["train.py", f"--config=configs/{name}.py", f"--workdir={workdir}", *TINY, *flags]) == 0
    return read_json(workdir / "comparison.json"), (workdir / "report.html").read_text()


@pytest.fixture
def texts(tmp_path):
    """Four pairs in each of the published files: related texts share their letters."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for part in ("train", "eval", "test"):
        lines = [f"{i % 2}.0\tA\tB\t{part} {i} {'ab' * 9}\t{i} {('cd', 'ab')[i % 2] * 7}\n" for i in range(4)]
        (folder / f"new_aan_pairs.{part}.tsv").write_text("".join(lines))
    return folder


@pytest.mark.slow
def test_retrieval_from_files_to_report(tmp_path, texts, capsys):
    flags = [f"--config.data.path={texts}", "--config.data.length=16", "--config.only=window,linear"]
    table, page = run(lra_retrieval, tmp_path / "run", *flags)
    assert [variant["name"] for variant in table["variants"]] == ["window", "linear"]
    for variant in table["variants"]:
        assert variant["quality"]["mean"] in (0, 0.25, 0.5, 0.75, 1) and variant["train_tokens_per_second"] > 0
        assert variant["quality"]["stderr_over"] == "texts"
        assert variant["scaling"]["lengths"] == [4, 9, 16] and variant["parameters"] > 0
    assert table["baselines"] == {"majority": 0.5, "trigrams": 1.0} and "trigrams" in capsys.readouterr().out
    assert "of all pairs at T = 16" in page and "<svg" in page


@pytest.mark.slow
def test_pixels_from_digits_to_pictures(tmp_path, capsys):
    table, page = run(lra_image, tmp_path / "run", "--config.only=full,linformer")
    assert set(table["baselines"]) == {"majority", "nearest mean", "linear"}
    assert table["variants"][0]["quality"]["stderr_over"] == "images" and "nearest mean" in capsys.readouterr().out
    maps = [read_arrays(tmp_path / "run" / label / "pictures.npz").get("maps") for label in ("full", "linformer")]
    assert maps[0].shape == (8, 8, 8) and maps[1] is None  # Linformer's weights are no shares
    assert "What each model looks at" in page and (tmp_path / "run" / "figures" / "attention.png").stat().st_size
    assert TASKS["pixels"].UNIT == "tokens" and table["unit"]["name"] == "tokens"
