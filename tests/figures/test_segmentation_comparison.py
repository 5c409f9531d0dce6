import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import f1_score

from figures import images as image_figures
from figures import segmentation_comparison
from figures.segmentation_comparison import write_comparison
from training.errors import UsageError

SUMMARY = {
    "test/dice": 0.9,
    "test/dice_per_image": 0.85,
    "test/iou": 0.8,
    "test/iou_per_image": 0.75,
    "test/pixel_accuracy": 0.95,
    "train_seconds": 90.0,
    "n_parameters": 1234567,
}
OUTPUT = {
    "comparison.md",
    "figures/comparison_table.png",
    "figures/comparison_curves.png",
    "figures/comparison_predictions.png",
}


def arrays(seed: int = 0, n: int = 3, size: int = 16) -> dict[str, np.ndarray]:
    """Pictures that are the same for all seeds, and predictions that are not."""
    pictures, guesses = np.random.default_rng(0), np.random.default_rng(seed)
    return {
        "images": pictures.integers(0, 256, (n, 3, size, size), dtype=np.uint8),
        "true_masks": pictures.choice(np.array([0, 1, 255], dtype=np.uint8), (n, size, size)),
        "predicted_masks": guesses.integers(0, 2, (n, size, size), dtype=np.uint8),
        "names": np.array([f"pet_{i}" for i in range(n)]),
        "class_names": np.array(["background", "cell"]),
    }


def write_run(folder: Path, seed: int = 0, speed: bool = True, validates: bool = True, **changes) -> Path:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(SUMMARY | {"test/dice": 0.9 + seed / 100}))
    lines = []
    for step in range(1, 9):
        row = {"step": step, "epoch": step / 2, "time": 1.0 * step, "train/loss": 1 / step + seed}
        if speed:
            row["train/images_per_second"] = 1000 if step == 1 else 10.0 * step
        if validates and step % 4 == 0:
            row |= {"valid/dice": step / 10, "valid/iou": step / 20}
        if step == 8:
            row |= {"test/dice": 0.9 + seed / 100, "test/iou": 0.8}
        lines.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    np.savez_compressed(folder / "test_predictions.npz", **arrays(seed) | changes)
    return folder


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Figure]:
    seen: dict[str, Figure] = {}
    save_png = image_figures.save_png

    def save_and_keep(figure: Figure, path: Path) -> None:
        save_png(figure, path)
        seen[path.name] = figure

    for module in (image_figures, segmentation_comparison):
        monkeypatch.setattr(module, "save_png", save_and_keep)
    return seen


def test_views_are_columns_where_every_run_has_them(tmp_path):
    runs = {name: write_run(tmp_path / name) for name in ("a", "b")}
    for k, folder in enumerate(runs.values()):
        assert "over test-time views |" not in write_comparison(tmp_path / "all", runs)
        with_views = SUMMARY | {"test/dice_views": 0.91 + k / 100, "test/iou_views": 0.83}
        (folder / "summary.json").write_text(json.dumps(with_views))
    markdown = write_comparison(tmp_path / "all", runs)
    assert "| Dice over test-time views | IoU over test-time views |" in markdown
    assert "| 0.9100 | 0.8300 |" in markdown and "| 0.9200 | 0.8300 |" in markdown


@pytest.mark.filterwarnings("error")
def test_what_is_written(tmp_path, drawn):
    runs = {name: write_run(tmp_path / name, seed) for seed, name in enumerate(("mp-tr-bce", "mp-tr-dice"))}
    markdown = write_comparison(tmp_path / "all", runs)
    written = {str(p.relative_to(tmp_path / "all")) for p in (tmp_path / "all").rglob("*") if p.is_file()}
    assert written == OUTPUT
    assert (tmp_path / "all" / "comparison.md").read_text() == markdown
    for name in OUTPUT - {"comparison.md"}:
        with Image.open(tmp_path / "all" / name) as picture:
            assert min(picture.size) > 50

    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.split("\n") if "|" in line]
    assert table[0][0] == "variant" and table[0][-1] == "images per second"
    numbers = ["0.8500", "0.8000", "0.7500", "95.00 %", "1.5 min", "1,234,567", "55"]  # 55: the median
    assert table[2:] == [["mp-tr-bce", "0.9000", *numbers], ["mp-tr-dice", "0.9100", *numbers]]
    texts = [re.split(r" {2,}", text.get_text().strip()) for text in drawn["comparison_table.png"].axes[0].texts]
    assert texts[2:] == table[2:]
    linked = {line.split("(")[1][:-1] for line in markdown.split("\n") if line.startswith("![")}
    assert all((tmp_path / "all" / link).exists() for link in linked) and len(linked) == 2


def test_all_runs_are_in_one_figure_over_epochs(tmp_path, drawn):
    runs = {f"variant {seed}": write_run(tmp_path / str(seed), seed) for seed in range(5)}
    write_comparison(tmp_path / "all", runs)
    figure = drawn["comparison_curves.png"]
    loss, dice, iou = figure.axes
    for seed, line in enumerate(loss.lines):
        assert line.get_xdata().tolist() == [step / 2 for step in range(1, 9)]
        assert line.get_ydata().tolist() == [1 / step + seed for step in range(1, 9)]
    assert [line.get_ydata().tolist() for line in dice.lines] == [[0.4, 0.8]] * 5
    assert [line.get_ydata().tolist() for line in iou.lines] == [[0.2, 0.4]] * 5
    assert len({(line.get_color(), line.get_linestyle()) for line in dice.lines}) == 5
    assert "compares only between runs of the same loss" in loss.get_title()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [f"variant {seed} (test Dice {0.9 + seed / 100:.4f})" for seed in range(5)]


def test_where_a_run_has_no_validation_the_curves_are_of_the_test_split(tmp_path, drawn):
    runs = {"a": write_run(tmp_path / "a"), "b": write_run(tmp_path / "b", 1, validates=False)}
    write_comparison(tmp_path / "all", runs)
    _, dice, iou = drawn["comparison_curves.png"].axes
    assert dice.get_title() == "test: Dice" and iou.get_title() == "test: IoU"
    assert [line.get_ydata().tolist() for line in dice.lines] == [[0.9], [0.91]]


def test_dice_above_the_overlays_against_scikit_learn(tmp_path, drawn):
    changed = arrays()
    changed["true_masks"][1] = 0  # nothing to be found, and
    changed["predicted_masks"][1] = 0  # nothing found
    changed["true_masks"][2] = 0  # nothing to be found, but something found
    runs = {"a": write_run(tmp_path / "a", 0, **changed), "b": write_run(tmp_path / "b", 1, **changed)}
    write_comparison(tmp_path / "all", runs)
    texts = [text.get_text() for text in drawn["comparison_predictions.png"].axes[0].texts]
    expected = []
    for true, predicted in zip(changed["true_masks"], changed["predicted_masks"], strict=True):
        counted = true != 255
        dice = f1_score(true[counted] == 1, predicted[counted] == 1, zero_division=1.0)
        expected += [f"Dice {dice:.4f}"] * 2
    assert [text for text in texts if text.startswith("Dice")] == expected
    assert expected[2] == "Dice 1.0000" and expected[4] == "Dice 0.0000"
    assert [text for text in texts if text.startswith("pet_")] == ["pet_0", "pet_1", "pet_2"]
    assert texts.count("picture") == texts.count("true mask") == texts.count("a") == texts.count("b") == 1


def test_of_many_pictures_some_are_drawn(tmp_path, drawn):
    run = write_run(tmp_path / "a", **arrays(n=50, size=8))
    write_comparison(tmp_path / "all", {"a": run})
    names = [text.get_text() for text in drawn["comparison_predictions.png"].axes[0].texts]
    shown = [name for name in names if name.startswith("pet_")]
    assert len(shown) == 8 and shown[0] == "pet_0" and shown[-1] == "pet_49"


def test_speed_is_a_column_only_where_all_runs_have_it(tmp_path):
    runs = {"a": write_run(tmp_path / "a"), "b": write_run(tmp_path / "b", speed=False)}
    assert "images per second |" not in write_comparison(tmp_path / "all", runs)


def drop(file_name: str):
    return lambda folder: (folder / file_name).unlink()


def cut(file_name: str):
    return lambda folder: (folder / file_name).write_bytes((folder / file_name).read_bytes()[:-200])


def write(file_name: str, text: str):
    return lambda folder: (folder / file_name).write_text(text)


def save(**changes):
    return lambda folder: np.savez(folder / "test_predictions.npz", **arrays() | changes)


def flip_bytes(folder: Path) -> None:
    content = bytearray((folder / "test_predictions.npz").read_bytes())
    content[200:300] = bytes(255 - byte for byte in content[200:300])
    (folder / "test_predictions.npz").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("summary.json"), "summary.json is missing"),
        (drop("metrics.jsonl"), "metrics.jsonl is missing"),
        (drop("test_predictions.npz"), "test_predictions.npz is missing"),
        (cut("summary.json"), "summary.json is damaged"),
        (cut("test_predictions.npz"), "test_predictions.npz is damaged"),
        (flip_bytes, "test_predictions.npz is damaged"),
        (write("test_predictions.npz", ""), "test_predictions.npz is damaged"),
        (write("test_predictions.npz", "no archive"), "test_predictions.npz is damaged"),
        (write("summary.json", "[]"), "summary.json has no number `test/dice`"),
        (write("summary.json", json.dumps(SUMMARY | {"test/iou": "?"})), "has no number `test/iou`"),
        (write("metrics.jsonl", "nonsense\n"), "metrics.jsonl, line 1"),
        (write("metrics.jsonl", ""), "metrics.jsonl has no `train/loss`"),
        (save(names=np.array(["pet"] * 2)), "damaged .*names <U3.2."),
        (save(names=np.array([None] * 3)), "damaged .*allow_pickle"),
        (save(true_masks=np.zeros((3, 8, 8), np.uint8)), "do not fit"),
        (save(predicted_masks=np.zeros((3, 16, 16))), "predicted_masks float64"),
        (save(**arrays(n=0)), "do not fit"),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(tmp_path, damage, message):
    runs = {"good": write_run(tmp_path / "good"), "bad": write_run(tmp_path / "bad run")}
    damage(tmp_path / "bad run")
    with pytest.raises(UsageError, match=message) as refused:
        write_comparison(tmp_path / "all", runs)
    assert "bad run" in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "all").exists()


def test_a_missing_folder_and_no_runs_are_refused(tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        write_comparison(tmp_path / "all", {"a": tmp_path / "nowhere"})
    with pytest.raises(UsageError, match="no runs"):
        write_comparison(tmp_path / "all", {})


@pytest.mark.parametrize("name", ["names", "images", "true_masks"])
@pytest.mark.parametrize("how", ["other", "fewer"])
def test_runs_on_different_pictures_are_refused(tmp_path, name, how):
    changed = arrays(n=2) if how == "fewer" else {name: arrays()[name][::-1]}
    runs = {"a": write_run(tmp_path / "a"), "b": write_run(tmp_path / "b", **changed)}
    message = "different pictures" if how == "fewer" else f"different pictures .`{name}`"
    with pytest.raises(UsageError, match=message):
        write_comparison(tmp_path / "all", runs)
    assert not (tmp_path / "all").exists()
