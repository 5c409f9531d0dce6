import io
import json
import shutil
from pathlib import Path

import forked_runs
import pytest

from tests.run_folders import edit_config
from tools.export import export
from tools.exporting.trained_model import open_trained_model
from tools.translate import Translator, main
from training.cli import call_with_flags
from training.errors import UsageError

pytestmark = pytest.mark.training


MODELS = {
    "transformer": (
        "--epochs",
        "30",
        "--d_model",
        "64",
        "--n_heads",
        "2",
        "--n_encoder_layers",
        "1",
        "--n_decoder_layers",
        "1",
        "--d_ff",
        "64",
    ),
    "lstm": (
        "--epochs",
        "30",
        "--model",
        "lstm",
        "--embedding_dim",
        "32",
        "--hidden_size",
        "48",
        "--attentional_layer",
        "--input_feeding",
    ),
}


def train(folder: Path, lines: list[str], *flags: str) -> Path:
    """A small run that learns to copy."""
    (folder / "digits").write_text("".join(f"{line}\n" for line in lines))
    forked_runs.run(
        "train_translation.py",
        "demo",
        "--train_files",
        str(folder / "digits"),
        str(folder / "digits"),
        "--output_dir",
        str(folder / "run"),
        "--tracker",
        "none",
        "--validate_every",
        "200",
        "--max_tokens",
        "512",
        "--beam_size",
        "3",
        "--eval_batch_size",
        "7",
        *flags,
        check=True,
    )
    return folder / "run"


@pytest.fixture(scope="module", params=["transformer", "lstm"])
def finished(request, tmp_path_factory) -> Path:
    """A run on digits, whose translations differ from line to line."""
    lines = [f"{i} {i * 7 % 100} {i * 3 % 10}" for i in range(600)]
    return train(tmp_path_factory.mktemp("digits"), lines, *MODELS[request.param])


def test_it_repeats_the_translations_of_the_run(finished):
    source, hypothesis = (
        (finished / "translations" / f"test.{kind}.txt").read_text().splitlines() for kind in ("src", "hyp")
    )
    translator = Translator(finished)
    assert translator(source) == hypothesis
    assert translator(source, batch_size=1) == hypothesis
    assert len(set(hypothesis)) > 1


def test_order_and_empty_lines_are_kept(finished):
    translator = Translator(finished)
    sentences = ["1 2 3", "", "  ", "44 5", "1 2 3 4 5 6 7 8 9"]
    translations = translator(sentences)
    assert translations[1] == translations[2] == ""
    assert [translator([s])[0] for s in sentences] == translations
    assert translator(["\N{SNOWMAN}"])  # an unknown character is no error


def test_the_beginning_of_a_monstrous_line_is_translated(finished, capsys):
    translator = Translator(finished)
    sentences = ["1 2 3", "5" * 200_000]
    assert translator(sentences, beam_size=1)[0] == translator(["1 2 3"], beam_size=1)[0]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: 1 of 2 lines have more than 1,024 tokens")


def test_samples_follow_their_seed(finished):
    translator = Translator(finished)
    draws = [translator(["1 2 3", "4 5 6"], temperature=1.5, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_the_command_reads_stdin_or_arguments(finished):
    def run(*flags, stdin=""):
        return forked_runs.run("-m", "tools.translate", *flags, stdin=stdin)

    piped = run(finished, stdin="1 2 3\n\n44 5\n")
    given = run(finished, "1 2 3", "44 5", "--beam_size", "3")
    assert piped.returncode == given.returncode == 0, piped.stderr
    lines = piped.stdout.split("\n")
    assert len(lines) == 4 and lines[1] == "" and [lines[0], lines[2]] == given.stdout.splitlines()
    absent = run(finished.parent / "nothing", "1 2 3")
    assert absent.returncode == 2 and absent.stderr.startswith("error:") and absent.stderr.count("\n") == 1


def test_another_engine_gives_the_same_translations(finished, tmp_path, capsys):
    pytest.importorskip("ctranslate2")

    def run(*flags):
        return forked_runs.run("-m", "tools.translate", *flags, stdin="1 2 3\n\n44 5\n")

    answered = run(finished, "--engine", "ctranslate2")
    if Translator(finished).config.model == "lstm":
        assert answered.returncode == 2 and "no LSTM" in answered.stderr and answered.stderr.count("\n") == 1
        return
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout == run(finished).stdout
    exported = tmp_path / "exported"
    export(open_trained_model(finished), "ctranslate2", exported, "int8")
    assert run(exported, "--engine", "ctranslate2").stdout == answered.stdout
    for flags, named in (
        (("--engine", "ctranslate2", "--temperature", "1"), "--temperature"),
        (("--quantization", "int8"), "--engine ctranslate2"),
    ):
        with pytest.raises(SystemExit) as end:
            call_with_flags(main, [str(finished), "x", *flags])
        assert end.value.code == 2
        assert named in capsys.readouterr().err


def test_answers_come_before_stdin_ends_whatever_the_cuts(finished, capsys, monkeypatch):
    """A pipe that gives a few bytes at a time; what a piece completes is said before the next is asked for."""
    text = "1 2 3\r\n\n44 5\n\N{SNOWMAN} 7 8"
    content = text.encode()
    said: list[int] = []

    class Pipe(io.BytesIO):
        def read1(self, size=-1):
            said.append(capsys.readouterr().out.count("\n") + (said[-1] if said else 0))
            return super().read1(min(size, 2))

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Pipe(content)))
    main(str(finished), beam_size=1)
    complete = [content[: 2 * i].count(b"\n") for i in range(len(said) - 1)]
    assert said == [*complete, 3] and said[-2] == 3
    assert capsys.readouterr().out.count("\n") == 1


def test_samples_of_stdin_are_those_of_the_whole_text_at_once(finished):
    lines = ["1 2 3", "4 5 6", "7 8 9"]
    translator = Translator(finished)
    whole = translator(lines, temperature=1.5)
    assert translator(lines[1:], temperature=1.5, n_before=1) == whole[1:] != translator(lines[1:], temperature=1.5)


def test_masked_numbers_are_copied_from_the_sentence(tmp_path):
    lines = [f"room {i}, {i * 7 % 100}" if i % 2 else f"{i} houses at {i * 3}" for i in range(400)]
    run = train(tmp_path, lines, "--mask_numbers", *MODELS["lstm"], "--epochs", "60")
    translator = Translator(run)
    sentences = ["room 1, 2", "", "1.000,50 houses at 10:30"]
    assert translator(sentences) == sentences
    for kind in ("src", "hyp"):
        lines = (run / "translations" / f"test.{kind}.txt").read_text().splitlines()
        assert translator(lines) == lines


def test_it_decodes_as_the_run_was_tested(finished, tmp_path):
    """By the penalty that the test chose; and a run of old, whose config lacks the field, by the old rule."""
    run = shutil.copytree(finished, tmp_path / "run")
    config = Translator(run).config
    assert (config.length_normalization, config.length_penalty) == ("power", 1.0)
    (run / "summary.json").write_text(json.dumps({"length_penalty": 0.6}))
    for checkpoint in (run / "checkpoints").iterdir():
        edit_config(checkpoint, lambda saved: saved.pop("length_normalization"))
    config = Translator(run).config
    assert (config.length_normalization, config.length_penalty) == ("gnmt", 0.6)
    (run / "summary.json").unlink()
    assert Translator(run).config.length_penalty == 1.0


def test_a_folder_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no checkpoint there"):
        Translator(tmp_path)
