import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import forked_runs
import pytest
import torch
from PIL import Image

from data.images.pixels import normalise
from models.test_time_augmentation import logits_over_views
from tools.classify import Classifier
from tools.segment import Segmenter

pytestmark = pytest.mark.training

NARROW = {"width": 400, "height": 800}

WITHOUT_GRADIO = "gradio is missing: pip install -r requirements-optional.txt"
TINY_RUNS = {
    "translation": (
        "train_translation.py demo --train_files {lines} {lines} --vocab_size 60 --d_model 32 --n_heads 2 "
        "--d_ff 32 --n_encoder_layers 1 --n_decoder_layers 1 --beam_size 2 --test_sentences 10"
    ),
    "unet": "train_unet.py demo --width 16 --depth 2 --evaluate_every 0",
    "cifar": "train_cifar.py demo --model ultimus --optimizer adamw --lr 0.01",
    "cvae": "train_cvae.py demo --latent_dim 4 --width 16 --judge none --iw_samples 0 --evaluate_every 0",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """The folder of a tiny run of each script."""
    pytest.importorskip("gradio", reason=WITHOUT_GRADIO)
    folder = tmp_path_factory.mktemp("app")
    (folder / "lines").write_text("".join(f"the number {i} is here\n" for i in range(200)))
    started = []
    for name, command in TINY_RUNS.items():
        flags = ("--max_train_steps", "1", "--tracker", "none", "--output_dir", folder / name)
        started.append(forked_runs.start(*command.format(lines=folder / "lines").split(), *flags))
    for run in started:
        _, err = run.communicate()
        assert run.returncode == 0, err
    return {name: folder / name for name in TINY_RUNS}


@pytest.fixture(scope="module")
def address(runs, tmp_path_factory) -> Iterator[str]:
    """Of one page for a run of each script, two of them classifiers, which ends as it should."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = tmp_path_factory.mktemp("temporary")
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.app", *runs.values(), runs["cifar"], "--port", str(port)],
        cwd=forked_runs.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"http://127.0.0.1:{port}/ (end with Ctrl-C)\n"
        yield f"http://127.0.0.1:{port}/"
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
        assert list(temporary.glob("onecycle-app-*")) == []  # of the uploads nothing is left
    finally:
        process.kill()
        process.wait()


def choose_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    page.locator(".run:visible").first.wait_for()


def upload(page, path: Path) -> None:
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(path)


def gradient(path: Path, size: tuple[int, int] = (48, 32)) -> Path:
    Image.linear_gradient("L").resize(size).convert("RGB").save(path)
    return path


def wait_for_other_pictures(page, selector: str, shown: str) -> None:
    page.wait_for_function("([name, old]) => document.querySelector(name).innerHTML != old", arg=[selector, shown])


def assert_nothing_sticks_out(page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_sentence_is_translated_with_alternatives_and_attention(open_served_page, runs, address):
    with open_served_page(address, viewport=NARROW, color_scheme="dark") as page:
        choose_tab(page, "Translate")
        page.locator(".gallery-item:visible").first.click()
        page.locator("table.attention").wait_for()
        sources = (runs["translation"] / "translations" / "test.src.txt").read_text().splitlines()
        assert page.get_by_label("Sentence").input_value() in sources
        n_tokens = page.locator("table.attention thead th").count()
        assert n_tokens >= 3
        assert page.locator("table.attention tbody tr").first.locator("td").count() == n_tokens
        assert_nothing_sticks_out(page)


def test_a_picture_is_segmented_at_any_threshold(open_served_page, address, tmp_path):
    with open_served_page(address) as page:
        choose_tab(page, "Segment")
        upload(page, gradient(tmp_path / "gradient.png"))
        page.locator(".legend:visible").wait_for()
        threshold = page.get_by_label("number input for Threshold")
        for value, share in (("0", "pet 100.0%"), ("1", "pet 0.0%")):
            threshold.fill(value)
            threshold.press("Enter")
            page.locator(".legend:visible", has_text=share).wait_for()


def test_two_classifiers_stand_side_by_side(open_served_page, address):
    with open_served_page(address) as page:
        choose_tab(page, "Classify")
        assert page.locator(".run:visible").count() == 2
        page.locator(".gallery-item:visible").first.click()
        page.locator(".views figure:visible").nth(11).wait_for()
        left, right = page.locator(".views:visible").all()
        assert left.inner_text() == right.inner_text()
        assert left.bounding_box()["y"] == right.bounding_box()["y"]
        page.get_by_label("six views").check()
        page.locator(".views figure:visible").nth(11).wait_for()


def test_a_digit_is_drawn_with_the_mouse_and_shown_under_every_label(open_served_page, address):
    with open_served_page(address) as page:
        choose_tab(page, "Draw")
        page.set_viewport_size(NARROW)
        relabelled, samples = page.locator(".labels:visible"), page.locator(".samples:visible")
        example = relabelled.inner_html()
        box = page.locator("canvas").bounding_box()
        page.mouse.move(box["x"] + 100, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + 110, box["y"] + 200, steps=4)
        page.mouse.up()
        wait_for_other_pictures(page, ".labels", example)
        assert relabelled.locator("figure").count() == 11

        assert samples.locator("img").count() == 80
        before = samples.inner_html()
        page.get_by_label("Seed").fill("1")
        page.get_by_label("Seed").press("Tab")
        wait_for_other_pictures(page, ".samples", before)
        page.get_by_label("Label", exact=True).click()
        page.get_by_role("option", name="7").click()
        samples.locator("b", has_text="7").wait_for()
        page.wait_for_function("document.querySelectorAll('.samples img').length == 40")
        page.get_by_role("button", name="Clear", exact=True).click()
        assert_nothing_sticks_out(page)


def test_input_that_cannot_be_used_is_told_in_a_line_and_the_page_goes_on(open_served_page, address, tmp_path):
    (tmp_path / "scan.png").write_bytes(b"%PDF-1.7\n")
    with open_served_page(address) as page:
        for text, said in (("", "there is no text yet"), ("long " * 2000, "the text has 9,999 characters")):
            page.get_by_label("Sentence").fill(text)
            page.get_by_role("button", name="Translate", exact=True).click()
            page.get_by_text(said).wait_for()
        choose_tab(page, "Classify")
        for path, said in (
            (tmp_path / "scan.png", "scan.png: cannot decode the image"),
            (gradient(tmp_path / "line.png", (20_000, 1)), "line.png has 20,000 x 1 pixels"),
        ):
            upload(page, path)
            page.get_by_text(said).wait_for()
            page.locator(".picture:visible [aria-label='Remove Image']").click()
        upload(page, gradient(tmp_path / "good.png"))
        page.locator(".views:visible").first.wait_for()


def test_no_file_of_the_machine_can_be_read_through_it(runs, address):
    config = json.loads(urllib.request.urlopen(f"{address}config").read())
    kinds = {component["id"]: component["type"] for component in config["components"]}
    takers = [call["id"] for call in config["dependencies"] if [kinds[i] for i in call["inputs"]] == ["image"]]
    assert takers
    secrets = [Path("/etc/passwd"), runs["unet"] / "config.json", forked_runs.ROOT / "README.md"]
    for secret in secrets:
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}gradio_api/file={secret}")
        described = {"path": str(secret), "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
        for taker in takers:
            call = {"data": [described], "fn_index": taker, "session_hash": "session"}
            body = json.dumps(call).encode()
            request = urllib.request.Request(
                f"{address}gradio_api/run/predict", body, {"Content-Type": "application/json"}
            )
            with pytest.raises(urllib.error.HTTPError, match="500"):
                urllib.request.urlopen(request)


def test_at_one_half_the_mask_is_the_one_that_the_segmenting_tool_writes(runs, tmp_path):
    from tools.demonstration.segmentation import mask_at, predicted

    segmenter = Segmenter(runs["unet"])
    path = gradient(tmp_path / "gradient.png")
    ((_, mask),) = segmenter([path], segmenter.config.views)
    with Image.open(path) as image:
        seen = predicted(segmenter, image)
    assert torch.equal(mask_at(seen, 0.5, 1), mask)
    assert bool((mask_at(seen, 0.0, 1) == 1).all()) and not mask_at(seen, 1.0, 1).any()


def test_the_six_views_are_those_that_the_classifier_averages(runs):
    from tools.demonstration.classification import six_views

    classifier = Classifier(runs["cifar"])
    pixels = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    inputs = normalise(six_views(pixels), classifier.mean, classifier.std)
    with torch.no_grad():
        logits = classifier.model(inputs)
        averaged = logits_over_views(classifier.model, inputs[:1], "six")
    weights = torch.tensor([2, 1, 1] * 2) / 8
    torch.testing.assert_close((weights[:, None] * logits).sum(0), averaged[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("named", ["", "absent"])
def test_wrong_usage_is_one_line_and_exit_code_2(named, tmp_path):
    pytest.importorskip("gradio", reason=WITHOUT_GRADIO)
    done = forked_runs.run("-m", "tools.app", *filter(None, [named and tmp_path / named]))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error:") and (str(tmp_path) in line if named else "no run is named" in line)


def test_without_gradio_it_says_what_to_install(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError(name='gradio')")
    done = forked_runs.run("-m", "tools.app", "run", environment={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr == "error: gradio is missing: pip install -r requirements-optional.txt\n"
