import json

import pytest
from PIL import Image

from tools.plot_runs import main, plot_runs, read_runs
from training.errors import UsageError


def write_metrics(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(tmp_path):
    rows = [{"step": s, "epoch": s / 10, "time": 6.0 * s, "train/loss": 1 / s} for s in range(1, 21)]
    write_metrics(tmp_path / "run" / "metrics.jsonl", rows)
    return tmp_path / "run"


def test_a_figure_is_drawn_of_folders_and_of_a_record_of_seeds(run, tmp_path):
    rows = [{"seed": seed, "step": s, "epoch": s, "train/loss": seed + s} for seed in (4, 2) for s in (1, 2, 3)]
    record = write_metrics(tmp_path / "record.metrics.jsonl", rows)
    of_seeds = read_runs(record)
    assert [[row["train/loss"] for row in rows] for rows in of_seeds] == [[3, 4, 5], [5, 6, 7]]
    plot_runs({"a": run, "b": record}, ("train/loss",), "epoch", "Two runs", tmp_path / "out" / "x.png")
    with Image.open(tmp_path / "out" / "x.png") as picture:
        assert picture.width > 500 and len(picture.getcolors(1 << 24)) > 20


def test_the_legend_gives_the_time_an_epoch(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("tools.plot_runs.save_png", lambda figure, path: drawn.append(figure))
    plot_runs({"bucketed": run}, ("train/loss",), "minutes", "", tmp_path / "x.png")
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["bucketed (1.0 min an epoch)"]  # 120 s, 2 epochs
    (line,) = drawn[0].axes[0].lines
    assert line.get_xdata()[[0, -1]].tolist() == pytest.approx([0.1, 2.0])
    assert line.get_ydata()[-1] == 1 / 20


def test_what_cannot_be_drawn_is_refused_in_one_line(run, tmp_path, capsys):
    with pytest.raises(UsageError, match="has no valid/nll over epoch; it has train/loss"):
        plot_runs({"a": run}, ("valid/nll",), "epoch", "", tmp_path / "x.png")
    with pytest.raises(UsageError, match="nowhere is missing"):
        read_runs(tmp_path / "nowhere")
    for arguments in ((str(run),), (f"a={run}", f"a={run}")):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        error = capsys.readouterr().err
        assert end.value.code == 2 and "NAME=PATH" in error and error.count("\n") == 1
    assert not (tmp_path / "x.png").exists()
