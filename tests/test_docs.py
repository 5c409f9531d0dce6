"""What README, docs/ and docstrings say, held against the code: commands, flags, links, metrics and figures.

Every command that they show is parsed in full. Those that train the demos are run too, shortened, and those of the
tools that ask a run as they stand.
"""

import ast
import gzip
import importlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from functools import partial, wraps
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate_state import fresh_accelerate_state
from blank_figures import save_blank
from matplotlib.figure import Figure
from PIL import Image

import train_cifar
import train_cvae
import training.cli
from data.images.drawn_digits import drawn_digits
from data.images.drawn_shapes import drawn_shapes
from data.text.phrasebook import phrasebook_splits

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {path.stem.removeprefix("train_"): path for path in sorted(ROOT.glob("train_*.py"))}
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = [*SCRIPTS.values(), *sorted((ROOT / "tools").glob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]
PAGE_OF = {"translation": "translation.md", "unet": "unet.md", "cvae": "cvae.md", "cifar": "cifar.md"}
OTHER_PROGRAMS = {"make", "sacrebleu", "git", "pip", "pipx", "wandb"}
PROGRAMS = {"accelerate", "python", ".venv/bin/python", *OTHER_PROGRAMS}
WHAT_ONE_PUTS_BEFORE = re.compile(r"([A-Z_]+=\S+ |taskset -c \S+ |nohup |nice )+")
TINY = {
    "translation": (
        "--d_model 16 --n_heads 2 --d_ff 16 --n_encoder_layers 1 --n_decoder_layers 1 --max_tokens 256 "
        "--valid_sentences 4 --test_sentences 30 --beam_size 2 --eval_max_len 12"
    ),
    "unet": "--width 8 --depth 2 --image_size 32 --batch_size 4 --evaluate_every 0",
    "cifar": "--speednet_widths 8 8 8 --batch_size 16 --evaluate_every 0",
    "cvae": "--width 16 --batch_size 8 --spatial_latents 7 1 --iw_samples 2 --evaluate_every 0",
}
# Tools whose commands on the pages are run; the others write into the project, or ask for services.
TOOLS_THAT_ASK_A_RUN = {"translate", "classify", "segment", "sample", "analyse_corpus", "showcase", "compare"}
# What a page explains and not every run has.
CONDITIONAL = {
    "test/bleu_without_near_duplicates",
    "train/divergence",
    "train/kl_level_2",
    "train/proxy_loss",
    "train/skipped",
    "train/tokens_per_second",
    "train/images_per_second",
}


# --- what the pages hold


class Command(NamedTuple):
    page: str
    text: str


def fenced_lines(page: str) -> list[str]:
    """The lines of fenced blocks of no language, or of a shell's, however far a list indents them."""
    blocks = re.findall(r"(?ms)^ *```(?:bash|sh|console)?\n(.*?)^ *```$", page)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def docstring_lines(source: str) -> list[str]:
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return [line for line in docstring.replace("\\\n", " ").splitlines() if line.startswith("    ")]


def commands_in(lines: list[str], page: str) -> list[Command]:
    found = []
    for line in lines:
        text = re.sub(r"\s{2,}#.*", "", line.strip())
        text = WHAT_ONE_PUTS_BEFORE.sub("", text, count=1) if WHAT_ONE_PUTS_BEFORE.match(text) else text
        if text.partition(" ")[0] in PROGRAMS:
            found.append(Command(page, " ".join(text.split())))
    return found


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


ON_PAGES = [c for path in DOCS for c in commands_in(fenced_lines(path.read_text("utf-8")), name_of(path))]
IN_DOCSTRINGS = [c for path in CODE for c in commands_in(docstring_lines(path.read_text("utf-8")), name_of(path))]


def python_command(words: list[str]) -> list[str]:
    """What Python is to run, [file or module, flags ..]: of a launch the script, its YAML checked."""
    if words[0] == "accelerate":
        assert words[1] == "launch"
        launch = launch_command_parser().parse_args(words[2:])
        assert (ROOT / launch.config_file).is_file(), launch.config_file
        return [launch.training_script, *launch.training_script_args]
    return words[2:] if words[1] == "-m" else words[1:]


class Parsed(Exception):
    """The flags are right."""


@pytest.fixture
def parsing_alone(monkeypatch):
    """Programs run by runpy end with `Parsed` where they would begin to work."""
    call_with_flags, parse_flags = training.cli.call_with_flags, training.cli.parse_flags

    def call(main, args=None):
        @wraps(main)
        def stop(**arguments):
            raise Parsed

        call_with_flags(stop, args)

    def parse(*arguments, **options):
        parse_flags(*arguments, **options)
        raise Parsed

    monkeypatch.setattr(training.cli, "call_with_flags", call)
    monkeypatch.setattr(training.cli, "parse_flags", parse)
    monkeypatch.setattr(training.cli, "run_tool", lambda main, **options: main())


def run_module(name: str, flags: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *flags])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.delitem(sys.modules, name, raising=False)
    runpy.run_module(name, run_name="__main__")


# --- commands, flags, links


def test_the_pages_show_what_people_need():
    shown = {command.page: " ".join(c.text for c in ON_PAGES if c.page == command.page) for command in ON_PAGES}
    for script, path in SCRIPTS.items():
        on_its_page = shown[f"docs/{PAGE_OF[script]}"]
        assert f"{path.name} demo" in on_its_page
        assert "--data_dir" in on_its_page or "--train_files" in on_its_page
    for tool in TOOLS_THAT_ASK_A_RUN:
        assert f"-m tools.{tool} " in " ".join(shown.values()), tool


@pytest.mark.parametrize(
    "command", dict.fromkeys(ON_PAGES + IN_DOCSTRINGS), ids=lambda c: f"{c.page}: {c.text[:60]}"
)
def test_a_command_has_flags_that_there_are(command, parsing_alone, monkeypatch, capsys):
    words = shlex.split(command.text)
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
        return
    if words[0] in OTHER_PROGRAMS:
        return
    what, *flags = python_command(words)
    if what == "pytest":
        assert all((ROOT / word).exists() for word in flags if word.startswith("tests/"))
    elif "--help" in flags:
        assert (ROOT / what).is_file()
    elif what.endswith(".py") and Path(what).stem.removeprefix("train_") in SCRIPTS:
        script = importlib.import_module(Path(what).stem)
        training.cli.parse_config(script.RECIPES, "", flags)
    elif what.endswith(".py"):
        assert (ROOT / what).is_file(), what
    elif what.startswith("benchmarks."):
        module = ROOT / what.replace(".", "/")
        command = module / "__main__.py" if module.is_dir() else module.with_suffix(".py")
        source = command.read_text(encoding="utf-8")
        assert {flag for flag in flags if flag.startswith("--") and flag[2:] not in source} == set()
    else:
        assert what.startswith("tools."), f"{what} is not ours: it would be run in earnest"
        monkeypatch.chdir(ROOT)
        with pytest.raises(Parsed):
            run_module(what, flags, monkeypatch)


def known_flags() -> set[str]:
    """Names of the flags of all scripts and tools, and of what launches them."""
    names: set[str] = set()
    for path in SCRIPTS.values():
        fields = importlib.import_module(path.stem).Config.__dataclass_fields__
        names |= {*fields, *(f"no_{name}" for name in fields)}
    for path in sorted((ROOT / "tools").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names |= {
            argument.arg for node in ast.walk(tree) if isinstance(node, ast.arguments) for argument in node.args
        }
        names |= {
            node.target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
    for action in launch_command_parser()._actions:
        names |= {option.removeprefix("--") for option in action.option_strings}
    return names | {"help"}


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_flags_in_the_text_are_flags(page):
    text = re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"))
    flags = {flag for code in re.findall(r"`([^`]+)`", text) for flag in re.findall(r"--([a-z]\w*)", code)}
    of_edits = set(re.findall(r"(?m)^\+    (\w+): ", page.read_text(encoding="utf-8")))
    assert flags - known_flags() - of_edits == set()


def anchors(page: Path) -> set[str]:
    """As GitHub names the headings of a page."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*DOCS, ROOT / "results" / "README.md"], ids=name_of)
def test_links_and_paths_lead_somewhere(page):
    if not page.exists():
        pytest.skip("not written yet")
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target
    rooms = "accelerate_configs|benchmarks|data|docs|figures|models|results|sweeps|tests|tools|training"
    for path in re.findall(rf"`((?:{rooms})/[\w./-]+\.\w+)`", re.sub(r"(?ms)^```diff.*?^```$", "", text)):
        assert (ROOT / path).exists() or path.startswith("results/NAME"), path


def test_the_index_leads_to_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\((\w+\.md)\)", index))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_page_has_each_recipe_of_its_script(script):
    page = (ROOT / "docs" / PAGE_OF[script]).read_text(encoding="utf-8")
    recipes = importlib.import_module(f"train_{script}").RECIPES
    assert {name for name in recipes if f"| `{name}` |" not in page} == set()


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


# --- runs as the pages show them


def run_script(name: str, flags: list[str]) -> None:
    """train_<name>.py in this process."""
    script = importlib.import_module(f"train_{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"train_{name}.py", *flags])
        training.cli.run_script(script.main, script.RECIPES, "", user_errors=(script.DataError,))


def judge_that_says_one(images: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(images), dtype=torch.int64)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the pages' commands name: runs/<script>/<recipe>, made by the demos' own commands.

    The recipes that need data are the demo's runs under other names.
    """
    folder = tmp_path_factory.mktemp("place")
    before = Path.cwd()
    os.chdir(folder)
    short = ["--max_train_steps", "2", "--log_every", "1", "--tracker", "none"]
    try:
        with fresh_accelerate_state() as reset, pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_cifar, "drawn_shapes", partial(drawn_shapes, n_train=200, n_test=100))
            patch.setattr(train_cvae, "drawn_digits", partial(drawn_digits, n_train=200, n_test=100))
            patch.setattr(Figure, "savefig", save_blank)
            patch.setattr(train_cvae, "find_judge", lambda *arguments: judge_that_says_one)
            for script in SCRIPTS:
                shown = next(c for c in ON_PAGES if f"train_{script}.py demo" in c.text)
                _, *flags = python_command(shlex.split(shown.text))
                reset()
                run_script(script, [*flags, *TINY[script].split(), *short])
        for script, other in (
            ("cifar", "resnet"),
            ("cifar", "speedrun"),
            ("unet", "mp-tr-dice"),
            ("cvae", "mnist"),
            ("translation", "de-en-lstm"),
            ("translation", "de-en"),
        ):
            Path("runs", script, other).symlink_to("demo")
        for name in ("picture.png", "photo.jpg"):
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(name)
        for side, name in enumerate(("corpus.de.gz", "corpus.en.gz")):
            lines = [pair[side] + "\n" for pair in phrasebook_splits()[0][::60][:300]]
            Path(name).write_bytes(gzip.compress("".join(lines).encode()))
        yield folder
    finally:
        os.chdir(before)


def explained(script: str) -> set[str]:
    """What stands in code on the page of a script and on that of all runs."""
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in (PAGE_OF[script], "runs.md")]
    return set(re.findall(r"`([^`\n]+)`", " ".join(pages)))


@pytest.mark.training
@pytest.mark.parametrize("script", SCRIPTS)
def test_each_metric_and_figure_is_explained_and_there_is_no_other(script, place):
    run = place / "runs" / script / "demo"
    logged = set().union(*map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()))
    kept = {name for name in json.loads((run / "summary.json").read_bytes()) if not name.startswith("best/")}
    figures = {path.name for path in (run / "figures").glob("*.png")}
    on_page = explained(script)
    assert (logged | kept | figures) - on_page == set()
    metrics = {name for name in on_page if re.fullmatch(r"(train|valid|test)/\w+", name)}
    assert metrics - logged - kept - CONDITIONAL == set()


@pytest.mark.training
@pytest.mark.parametrize(
    "command",
    [c for c in dict.fromkeys(ON_PAGES) if re.search(rf"-m tools\.({'|'.join(TOOLS_THAT_ASK_A_RUN)})\b", c.text)],
    ids=lambda c: f"{c.page}: {c.text[:60]}",
)
def test_what_a_tool_is_shown_to_do_it_does(command, place, monkeypatch, capsys):
    tool, *flags = python_command(shlex.split(command.text))
    if "ctranslate2" in flags:
        pytest.importorskip("ctranslate2")
    monkeypatch.chdir(place)
    monkeypatch.setattr(training.cli, "run_tool", lambda main, **options: main())
    run_module(tool, flags, monkeypatch)
    assert capsys.readouterr().out


@pytest.mark.training
def test_a_finished_run_is_evaluated_as_shown(place, monkeypatch, capsys, fresh_accelerate):
    command = next(c for c in ON_PAGES if c.text.endswith("train_translation.py demo --eval_only"))
    monkeypatch.chdir(place)
    _, *flags = python_command(shlex.split(command.text))
    run_script("translation", [*flags, "--tracker", "none"])
    assert "test BLEU" in capsys.readouterr().out


@pytest.mark.training
def test_the_sacrebleu_command_gives_the_score_of_the_run(place):
    command = next(c for c in ON_PAGES if c.text.startswith("sacrebleu "))
    words = [sys.executable, "-m", *shlex.split(command.text)]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, check=True)
    scores = {score["name"]: score["score"] for score in json.loads(done.stdout)}
    of_run = json.loads((place / "runs/translation/demo/summary.json").read_bytes())
    assert scores["BLEU"] == pytest.approx(of_run["test/bleu"], abs=0.05)
    assert scores["chrF2"] == pytest.approx(of_run["test/chrf"], abs=0.05)
