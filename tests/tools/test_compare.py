"""The comparison: which runs it finds, what its table says, and its page as a browser shows it."""

import fcntl
import json
import math
import os
import random
import re
import time
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.compare import main
from tools.comparison.curves import curves_of, thinned
from tools.comparison.page import as_html, page_data
from tools.comparison.runs import find_runs
from tools.comparison.table import compare
from training.errors import UsageError
from training.metrics import read_metrics

RESULTS = Path(__file__).resolve().parents[2] / "results"
CONFIG = {"recipe": "speedrun", "cutout": 0, "epochs": 10, "lr": 0.1, "seed": 0, "model": "speednet"}
SUMMARY = {
    "test/loss": 0.4,
    "test/n_images": 100,
    "train_seconds": 90.0,
    "n_parameters": 1234,
    "device": "CPU (2 threads)",
    "mixed_precision": "no",
    "num_processes": 1,
    "versions": {"torch": "2.13.0"},
    "git_commit": "c0ffee" * 6,
    "command": "train_cifar.py speedrun",
}
EVIL = "<img src=x onerror=alert(1)>"
SENTENCE = "</script><script>alert(1)</script> & \u2028 “così”"


def write_run(folder, accuracy=None, n=60, begin=2.0, **config):
    """A run of train_cifar.py; without `accuracy` one that has not ended."""
    (folder / "figures").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config | {"output_dir": str(folder)}))
    noise = random.Random(folder.name)  # not of the whole path: pytest's folders differ from run to run
    lines = []
    for i in range(1, n + 1):
        line = {"step": 10 * i, "epoch": i / 6, "time": 1.5 * i}
        values = {"train/loss": begin / i + 0.1 * noise.random(), "train/images_per_second": 900.0, "lr": 0.1 / i}
        lines.append(line | values)
        if i % 10 == 0:
            lines.append(line | {"valid/accuracy": 0.9 - 1 / i + 0.01 * noise.random(), "valid/n_images": 50})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if accuracy is not None:
        (folder / "summary.json").write_text(json.dumps(SUMMARY | {"test/accuracy": accuracy}))
    return folder


def write_translation(folder, bleu, hypothesis):
    folder.mkdir(parents=True)
    config = {"recipe": "demo", "max_tokens": 1000, "seed": 0, "beam_size": len(hypothesis)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(SUMMARY | {"test/bleu": bleu}))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i, "epoch": i, "time": i, "train/loss": 1 / i}) + "\n" for i in (1, 2, 3))
    )
    (folder / "translations").mkdir()
    sides = {"src": [SENTENCE, "due"], "ref": ["one", "two"], "hyp": [hypothesis, "two"]}
    for side, lines in sides.items():
        (folder / "translations" / f"test.{side}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three seeds, another rate, one that is going on, one cut off in the middle of a line; two translations."""
    folder = tmp_path_factory.mktemp("work") / "runs"
    for seed, accuracy in enumerate((0.93, 0.95, 0.94)):
        write_run(folder / "cifar" / f"base-seed{seed}", accuracy, seed=seed)
    other = write_run(folder / "cifar" / EVIL, 0.9201, lr=0.2)
    Image.new("RGB", (2000, 1000), "orange").save(other / "figures" / "misclassified.png")
    write_run(folder / "cifar" / "going", begin=1.0, lr=0.3)  # a curve of its own, apart from the others
    with (write_run(folder / "cifar" / "cut", lr=0.4) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 610, "train/lo')
    write_translation(folder / "translation" / "one", 31.25, SENTENCE)
    write_translation(folder / "translation" / "two", 30.0, "uno")
    with (folder / "cifar" / "going" / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="module")
def cifar(runs):
    return find_runs([str(runs / "cifar")]).runs


# --- which runs


def test_folders_groups_globs_and_names_lead_to_their_runs(runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    everything = {run.name for run in find_runs([]).runs}
    assert {"cifar/base-seed0", f"cifar/{EVIL}", "translation/two"} < everything and len(everything) == 8
    assert [run.name for run in find_runs(["runs/cifar/base-seed?"]).runs] == [
        "base-seed0",
        "base-seed1",
        "base-seed2",
    ]
    assert [run.name for run in find_runs(["runs/cifar/cut", "runs/cifar/cut/metrics.jsonl"]).runs] == ["cifar/cut"]
    named = find_runs(["A=runs/cifar/cut", "all=runs/translation"]).runs
    assert [run.name for run in named] == ["A", "all/one", "all/two"]
    with pytest.raises(UsageError, match="runs/nowhere is not there"):
        find_runs(["runs/nowhere"])
    with pytest.raises(UsageError, match="as PATH or as NAME=PATH"):
        find_runs(["=runs/cifar/cut"])


def test_a_record_is_a_run_for_each_of_its_seeds(tmp_path):
    numbers = {"test/accuracy": 0.94, "train_seconds": 9, "n_parameters": 7, "total_seconds": 3}
    record = {
        "recipe": "speedrun",
        "command": "accelerate launch train_cifar.py speedrun --lr 0.5 --no-flip --widths 8 16",
        "commit": "c0ffee",
        "hardware": "one GPU",
        "numbers": numbers,
        "seeds": [4, 2],
        "runs": [{"test/accuracy": 0.95, "train_seconds": 8}, {"test/accuracy": 0.93, "train_seconds": 10}],
    }
    (tmp_path / "fast.json").write_text(json.dumps(record))
    (tmp_path / "speed.json").write_text('{"images_per_second": [1]}')
    lines = [{"seed": seed, "step": s, "train/loss": seed + s} for seed in (4, 2) for s in (1, 2)]
    (tmp_path / "fast.metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = find_runs([str(path) for path in sorted(tmp_path.glob("*.json"))])
    four, two = found.runs
    assert found.left_out == [tmp_path / "speed.json"]
    assert four.settings == {"lr": 0.5, "flip": False, "widths": [8, 16], "recipe": "speedrun", "seed": 4}
    assert [row["train/loss"] for row in two.rows] == [3, 4] and two.summary["test/accuracy"] == 0.93
    (row,) = compare(found.runs).rows
    assert row.name == "fast" and row.numbers["test/accuracy"].text == "94.00 ± 1.41 % (n = 2)"
    assert [run.name for run in find_runs([str(tmp_path)]).runs] == ["fast seed 4", "fast seed 2"]


def test_the_records_of_this_project_are_runs():
    found = find_runs([str(RESULTS)])
    assert len(found.runs) > 20 and not any(run.damage or not run.rows for run in found.runs)
    rows = {row.name: row for row in compare([run for run in found.runs if run.script == "cifar"]).rows}
    assert len(rows["cifar-speedrun"].runs) == 3


# --- the table


def test_seeds_are_averaged_and_what_differs_stands_beside(cifar):
    table = compare(cifar)
    rows = {row.name: row for row in table.rows}
    assert table.settings == ["lr"] and table.equal["model"] == "speednet" and "output_dir" not in table.equal
    base = rows["base"]
    assert base.numbers["test/accuracy"].text == "94.00 ± 1.00 % (n = 3)" and base.numbers["test/accuracy"].best
    assert base.settings["lr"].text == "0.1" and not rows[EVIL].numbers["test/accuracy"].best
    assert not any(row.numbers["test/loss"].best for row in table.rows)  # of another objective, perhaps
    assert rows["going"].status == "running, step 600, epoch 10 of 10"
    assert rows["cut"].status == "crashed or stopped, step 600, epoch 10 of 10"
    assert "test/n_images" not in table.numbers
    best = max(line["valid/accuracy"] for line in rows["cut"].runs[0].rows if "valid/accuracy" in line)
    assert rows["cut"].numbers["valid/accuracy"].value == best
    by_seed = compare(cifar, by_seed=True)
    assert len(by_seed.rows) == 6 and by_seed.settings == ["lr", "seed"]


def test_equal_numbers_have_no_best_and_other_data_is_said(tmp_path):
    write_run(tmp_path / "a", 0.90001, dataset="cifar10")
    write_run(tmp_path / "b", 0.90002, dataset="folders")
    table = compare(find_runs([str(tmp_path)]).runs)
    assert [row.numbers["test/accuracy"].text for row in table.rows] == ["90.00 %", "90.00 %"]
    assert not any(row.numbers["test/accuracy"].best for row in table.rows)
    assert table.note == "These runs differ in dataset: numbers of other data do not compare."


def test_seeds_of_another_precision_are_another_row_and_those_still_running_are_not(tmp_path):
    for seed, precision in enumerate(("no", "bf16", "no")):
        run = write_run(tmp_path / str(seed), 0.9 + seed / 100, seed=seed)
        (run / "summary.json").write_text(
            json.dumps(SUMMARY | {"mixed_precision": precision, "test/accuracy": 0.9 + seed / 100})
        )
    write_run(tmp_path / "3", seed=3)
    write_run(tmp_path / "again", 0.9, seed=0)
    table = compare(find_runs([str(tmp_path)]).runs)
    assert table.settings == ["precision"]
    found = [(row.status, row.settings["precision"].text, row.numbers["test/accuracy"].text) for row in table.rows]
    assert found == [
        ("2 finished, 1 crashed or stopped", "no", "91.00 ± 1.41 % (n = 2)"),
        ("finished", "bf16", "91.00 %"),
        ("finished", "no", "90.00 %"),
    ]


def test_the_terminal_shows_a_table_a_script(runs, tmp_path, capsys):
    page, rows = tmp_path / "out" / "page.html", tmp_path / "out" / "rows.json"
    main((str(runs),), output=str(page), json_file=str(rows))
    printed = capsys.readouterr()
    assert "Translation (train_translation.py)" in printed.out and "**94.00 ± 1.00 % (n = 3)**" in printed.out
    assert printed.out.count("settings that differ") == 2 and printed.err == ""
    kept = {row["name"]: row for row in json.loads(rows.read_text())["rows"]}
    assert kept["cifar/base"]["numbers"]["test/accuracy"] == pytest.approx(0.94)
    assert kept["cifar/base"]["seeds"] == [0, 1, 2] and kept[f"cifar/{EVIL}"]["settings"] == {"lr": 0.2}
    main((str(runs / "translation"),), values=("test/bleu",), output=str(page))
    header = capsys.readouterr().out.splitlines()[0]
    assert "test: BLEU" in header and "training time" not in header
    main((str(runs / "translation"),), values=("train/loss",), output=str(page))
    header, _, first, *_ = capsys.readouterr().out.splitlines()
    assert "last training: loss" in header and "0.333" in first


def test_what_cannot_be_compared_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    damaged = write_run(tmp_path / "damaged", 0.9)
    (damaged / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    for arguments, message in (
        ((), "no run in runs/"),
        (("empty",), "no run in empty"),
        (("x",), "x is not there"),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        error = capsys.readouterr().err
        assert end.value.code == 2 and message in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        main(("damaged",), values=("test/dice",))
    assert "none of the runs has it; they have test/accuracy" in capsys.readouterr().err
    main(("damaged",))
    printed = capsys.readouterr()
    assert (
        printed.err
        == "warning: damaged/metrics.jsonl, line 2: not a JSON object with a whole `step`; delete the line\n"
    )
    assert "90.00 %" in printed.out and (tmp_path / "comparison.html").is_file()


def test_watching_writes_the_page_anew_when_a_run_moves_on(tmp_path, monkeypatch, capsys):
    page, run = tmp_path / "page.html", tmp_path / "run"
    written = []

    def sleep(seconds):
        written.append(page.stat().st_mtime_ns if page.exists() else None)
        if len(written) == 1:
            write_run(run)
        elif len(written) == 3:
            os.utime(page, ns=(0, 0))
            with (run / "metrics.jsonl").open("a") as file:
                file.write('{"step": 1000, "train/loss": 0.5}\n')
        elif len(written) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("tools.compare.time.sleep", sleep)
    run.mkdir()
    with pytest.raises(KeyboardInterrupt):
        main((str(run),), output=str(page), watch=True, every=7)
    nothing, first, again, changed = written
    assert nothing is None and first == again and changed not in (0, first)
    printed = capsys.readouterr().out.splitlines()
    assert "waiting: no run in" in printed[0] and "1 crashed or stopped" in printed[1] and len(printed) == 3
    assert '"reload": 7' in page.read_text()


# --- curves


def test_long_curves_are_thinned_to_points_that_were_measured(tmp_path):
    values = np.sin(np.arange(50_000) / 5000)
    values[[12_345, 40_000]] = 9.0, -9.0
    places = thinned(values, 1000)
    assert len(places) <= 1000 and {0, 12_345, 40_000, 49_999} <= set(places.tolist())
    assert thinned(values[:1000], 1000).tolist() == list(range(1000))
    run = find_runs([str(write_run(tmp_path / "run", 0.9, n=3000))]).runs[0]
    columns = curves_of(run, ["train/loss", "valid/accuracy"], most=100)
    measured = {row["step"]: row for row in run.rows}
    for name, (at, values) in columns["curves"].items():
        assert 50 < len(values) <= 100
        assert all(measured[columns["step"][i]][name] == value for i, value in zip(at, values, strict=True))


def test_values_that_are_no_numbers_leave_the_page_whole(tmp_path):
    run = write_run(tmp_path / "run", 0.9)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 900, "epoch": 15, "time": NaN, "train/loss": NaN, "valid/accuracy": Infinity}\n')
    (run / "summary.json").write_text(json.dumps(SUMMARY | {"test/accuracy": math.nan}))
    as_html(page_data(find_runs([str(run)]).runs, [], (), 0))


# --- the page


@pytest.fixture(scope="module")
def page_path(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "comparison.html"
    note = "no records of runs, and left out: a.txt"
    path.write_text(as_html(page_data(find_runs([str(runs)]).runs, [note], (), 0)), encoding="utf-8")
    return path


PAINTED = """charts => charts.map(chart => {
    const canvas = chart.querySelector("canvas");
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
    let painted = 0;
    for (let i = 0; i < data.length; i += 4) {
        const [red, green, blue] = [data[i], data[i + 1], data[i + 2]];
        if (Math.max(red, green, blue) - Math.min(red, green, blue) > 60) painted++;
    }
    return painted;
})"""


def painted(page, section="#cifar"):
    """Coloured pixels of each chart, by its metric, once what is due is drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    charts = page.locator(f"{section} .chart")
    names = charts.evaluate_all("charts => charts.map(chart => chart.dataset.metric)")
    return dict(zip(names, charts.evaluate_all(PAINTED), strict=True))


def column(page, title, section="#cifar"):
    titles = page.locator(f"{section} table >> nth=0 >> thead th").all_inner_texts()
    place = next(i for i, text in enumerate(titles) if text.startswith(title))
    return page.locator(f"{section} table >> nth=0 >> tbody tr > :nth-child({place + 1})").all_inner_texts()


def test_every_chart_is_drawn_and_its_switches_work(page_path, open_page):
    with open_page(page_path, viewport={"width": 1400, "height": 900}) as page:
        assert page.title() == "Comparison of 8 runs"
        page.locator("#cifar details > summary", has_text="more curves").click()
        before = painted(page)
        assert set(before) == {"train/loss", "valid/accuracy", "train/images_per_second", "lr"}
        assert all(count > 50 for count in before.values())
        assert all(count > 50 for count in painted(page, "#translation").values())

        legend = page.locator("#cifar .legend button")
        legend.filter(has_text="going").click()
        assert legend.filter(has_text="going").get_attribute("aria-pressed") == "false"
        assert painted(page)["train/loss"] < before["train/loss"]
        without = painted(page)
        page.locator("#cifar").get_by_role("button", name="None").click()
        assert page.locator("#cifar .chart canvas").count() == 0
        page.locator("#cifar").get_by_role("button", name="All", exact=True).click()
        assert painted(page) == before != without

        chart = page.locator("#cifar [data-metric='train/loss']")
        page.locator("#cifar .legend").scroll_into_view_if_needed()
        box = chart.locator(".u-over").bounding_box()
        page.mouse.move(box["x"] + 200, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + 300, box["y"] + 40, steps=3)
        page.mouse.up()
        assert painted(page)["train/loss"] > 1.5 * before["train/loss"]  # low values, now over the whole height
        chart.locator(".u-over").dblclick()
        assert painted(page) == before

        page.locator("#cifar input[value=minutes]").check()
        minutes = page.locator("#cifar [data-metric='train/loss'] .plot").get_attribute("aria-label")
        assert minutes.startswith("training: loss over minutes, 6 curves; ")
        assert "cifar/base, seed 0 ends at 0." in minutes
        page.locator("#cifar").get_by_label("Log scale").check()
        assert painted(page) != before
        rough = painted(page)
        page.locator("#cifar input[type=range]").fill("0.9")
        assert painted(page) != rough
        page.reload()
        assert page.locator("#cifar input[type=range]").input_value() == "0.9"
        assert page.locator("#cifar input[value=minutes]").is_checked()


def test_the_table_sorts_filters_and_shows_what_is_equal(page_path, open_page):
    with open_page(page_path) as page:
        assert column(page, "test: accuracy")[1] == "94.00 ± 1.00 % (n = 3)\n(best)"
        page.locator("#cifar th button", has_text="test: accuracy").click()
        assert page.locator("#cifar th[aria-sort=descending]").inner_text().startswith("test: accuracy")
        assert [text[:5] for text in column(page, "test: accuracy")] == ["94.00", "92.01", "", ""]
        page.locator("#cifar th button", has_text="test: accuracy").press("Enter")
        assert [text[:5] for text in column(page, "test: accuracy")] == ["92.01", "94.00", "", ""]
        page.locator("#cifar th button", has_text="lr").click()
        assert column(page, "lr") == ["0.1", "0.2", "0.3", "0.4"]
        statuses = column(page, "status")
        assert statuses[2].startswith("running") and statuses[3].startswith("crashed or stopped")

        page.locator("#cifar input[type=search]").fill("finished 0.2")
        assert page.locator("#cifar [role=status]").inner_text() == "1 of 4 rows"
        assert column(page, "run") == [f"cifar/{EVIL}"] and page.locator("#cifar .legend button").count() == 1
        page.locator("#cifar input[type=search]").fill("")
        page.locator("#cifar").get_by_label("One row a seed").check()
        assert len(column(page, "run")) == 6 and column(page, "seed")[0] == "0"
        assert page.locator("#cifar dl.equal").is_hidden()
        page.locator("#cifar").get_by_label("Settings that are equal").check()
        assert page.locator("#cifar dl.equal").is_visible()
        assert page.locator("#cifar dl.equal div", has_text="model").locator("dd").inner_text() == "speednet"


def test_numbers_are_those_of_the_runs_and_text_stays_text(runs, page_path, open_page):
    with open_page(page_path) as page:
        page.locator("#cifar [data-metric='train/loss'] summary").click()
        page.locator("#cifar [data-metric='valid/accuracy'] summary").click()
        checked = 0
        for name in ("train/loss", "valid/accuracy"):
            cells = page.locator(f"#cifar [data-metric='{name}'] tbody tr").all()
            for row in cells:
                run, *texts = row.locator("th, td").all_inner_texts()
                folder = run.replace("base, seed ", "base-seed").removeprefix("cifar/")
                measured = {line["step"]: line for line in read_metrics(runs / "cifar" / folder / "metrics.jsonl")}
                for text in texts:  # last, best
                    shown, step = re.match(r"([\d.]+)(?: %)? at step (\d+)", text).groups()
                    factor = 100 if name == "valid/accuracy" else 1
                    error = abs(Decimal(shown) - Decimal(measured[int(step)][name]) * factor)
                    assert error <= Decimal(1).scaleb(Decimal(shown).as_tuple().exponent) / 2 + Decimal("1e-12")
                    checked += 1
        assert checked == 24
        page.locator("#cifar .chart").first.scroll_into_view_if_needed()
        box = page.locator("#cifar [data-metric='train/loss'] .u-over").bounding_box()
        for x in range(20, int(box["width"]), 20):
            page.mouse.move(box["x"] + x, box["y"] + box["height"] - 20)
        assert " at step " in page.locator("#cifar [data-metric='train/loss'] .tip").text_content()

        sentences = page.locator("#translation .sentence").first.locator("dd").all_inner_texts()
        assert sentences[0] == sentences[2] == SENTENCE and sentences[1] == "one" and sentences[3] == "uno"
        assert page.locator("img[src=x]").count() == 0 and page.locator("script").count() == 3
        (picture,) = page.locator("#cifar .pictures img").all()
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 1000
        assert picture.get_attribute("alt") == f"most confident mistakes of cifar/{EVIL}"
        assert page.locator("#top .warning").all_inner_texts() == ["no records of runs, and left out: a.txt"]


@pytest.mark.parametrize("scheme, width", [("light", 320), ("dark", 320), ("dark", 2200)])
def test_the_page_fits_a_phone_and_a_wide_screen(page_path, open_page, scheme, width):
    with open_page(page_path, viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        widths = page.locator(".chart canvas").evaluate_all("all => all.map(c => c.getBoundingClientRect().width)")
        assert all(200 < canvas <= width for canvas in widths)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        dark = sum(map(int, re.findall(r"\d+", background)[:3])) < 200
        assert dark == (scheme == "dark")
        assert all(count > 50 for count in painted(page).values())


def test_the_keyboard_reaches_and_works_everything(page_path, open_page):
    with open_page(page_path) as page:
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.closest('button, input, summary, a')?.textContent"))
        assert {"Translation (train_translation.py)", "All", "Numbers", "cifar/going"} <= reached
        button = page.locator("#cifar .legend button", has_text="going")
        button.focus()
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Space")
        assert button.get_attribute("aria-pressed") == "false"
        assert page.evaluate("document.activeElement.dataset.run") == "cifar/going"


def test_two_hundred_runs_make_a_small_page_in_seconds(tmp_path, open_page):
    for i in range(200):
        write_run(tmp_path / "runs" / f"run-{i}", 0.8 + i / 1000, n=250, begin=1 + i / 50, lr=i / 100)
    begun = time.monotonic()
    path = tmp_path / "comparison.html"
    main((str(tmp_path / "runs"),), output=str(path))
    with open_page(path, viewport={"width": 1400, "height": 900}) as page:
        assert all(count > 500 for count in painted(page).values())
        assert len(column(page, "run")) == 200
        taken = time.monotonic() - begun
    assert taken < 20 and path.stat().st_size < 10_000_000
