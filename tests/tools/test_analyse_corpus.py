import gzip
import json
import subprocess
import sys
import types
from collections import Counter
from dataclasses import fields
from pathlib import Path

import forked_runs
import pytest

import train_translation
from data.errors import DataError
from data.text.corpus import load_text_splits
from data.text.parallel_files import read_parallel_files
from tools import analyse_corpus
from tools.analyse_corpus import Config, corpus_name, main, report, track

FIGURES = ["lengths", "occurrences", "too_long", "unknown", "zipf"]


def letters(number: int) -> str:
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, Path]:
    """600 pairs, one of them long, one much longer on one side, one the same on both sides."""
    folder = tmp_path_factory.mktemp("corpus")
    sources = [f"Das Haus {letters(n % 200)} hat {n % 7} Türen, {letters(n)}." for n in range(597)]
    targets = [f"House {letters(n % 200)} has {n % 7} doors {letters(n)}." for n in range(597)]
    sources += ["wort " * 20, "Ja, ja", "Amen"]
    targets += ["word " * 20, "a b c d e f g h i j k l", "Amen"]
    paths = folder / "houses.de.gz", folder / "houses.en"
    paths[0].write_bytes(gzip.compress("\n".join(sources).encode()))
    paths[1].write_text("\n".join(targets), encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def written(corpus, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    output_dir = tmp_path_factory.mktemp("report")
    command = ("-m", "tools.analyse_corpus", "--train_files", *corpus, "--output_dir", output_dir)
    return output_dir, forked_runs.run(*command, figures=True)


def test_the_report_is_printed_and_written_with_numbers_and_figures(written):
    output_dir, finished = written
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    text = (output_dir / "corpus_report.txt").read_text(encoding="utf-8")
    assert finished.stdout.startswith(text.rstrip("\n")) and str(output_dir) in finished.stdout
    assert sorted(path.stem for path in (output_dir / "figures").glob("*.png")) == FIGURES
    assert sorted(path.name for path in output_dir.iterdir()) == ["corpus_report.txt", "figures", "report.json"]
    assert max(map(len, text.splitlines())) < 160


def test_the_numbers_are_those_of_a_plain_count(written, corpus):
    output_dir, _ = written
    numbers = json.loads((output_dir / "report.json").read_text(encoding="utf-8"))
    splits = load_text_splits("", "", ("de", "en"), train_files=corpus)
    assert numbers["languages"] == ["de", "en"] and numbers["loaded"] == splits.counts
    sizes = {(row["split"], row["language"]): row for row in numbers["sizes"]}
    for split, name in (("train", "training"), ("valid", "validation"), ("test", "test")):
        text = getattr(splits, split)
        for language, sentences in (("de", text.sources), ("en", text.targets)):
            # Here the tokenizer only splits off full stops, commas and single digits.
            spaced = [s.replace(".", " .").replace(",", " ,") for s in sentences]
            n_digits = sum(c.isdigit() for s in sentences for c in s)  # a token, and one for the space before
            assert sizes[name, language]["sentences"] == len(sentences)
            assert sizes[name, language]["tokens"] == sum(len(s.split()) for s in spaced) + n_digits
    words = Counter(word for sentence in splits.train.sources for word in sentence.rstrip(".").split())
    once = sum(count == 1 for count in words.values())
    assert numbers["occurrences"][0] == {
        "occurrences": "1",
        "de types": once,
        "de of types": pytest.approx(once / sizes["training", "de"]["types"]),
        "de tokens": once,
        "de of tokens": pytest.approx(once / sizes["training", "de"]["tokens"]),
        **{key: numbers["occurrences"][0][key] for key in numbers["occurrences"][0] if key.startswith("en")},
    }
    assert [row["max_len"] for row in numbers["too_long"]] == [128, 96, 64, 48, 42, 32, 24, 16]
    long = {row["max_len"]: row["pairs"] * len(splits.train) for row in numbers["too_long"]}
    assert (long[24], round(long[16])) == (0, 1)
    counts = {finding["name"]: finding["count"] for finding in numbers["findings"]}
    assert (counts["identical sides"], counts["extreme length ratio"], counts["repeated pair"]) == (1, 1, 0)


def test_the_recommended_settings_are_those_of_the_text_and_train_so(written, corpus):
    output_dir, finished = written
    numbers = json.loads((output_dir / "report.json").read_text(encoding="utf-8"))
    recommended = numbers["recommendation"]
    flags = {name: recommended[name] for name in ("min_frequency", "vocab_size", "max_len")}
    line = "Recommendation: --tokenizer word " + " ".join(f"--{name} {value}" for name, value in flags.items())
    assert line in finished.stdout
    few = ", ".join(
        f"{row['language']} {row['tokens']}" for row in numbers["sizes"] if row["split"] == "validation"
    )
    assert f"Uncertain: validation has but few tokens ({few})" in finished.stdout
    splits = load_text_splits("", "", ("de", "en"), train_files=corpus)
    trained = train_translation.TranslationCorpus(splits, kind="word", lowercase=False, joint=False, **flags)
    assert max(t.vocab_size for t in trained.tokenizers.values()) == recommended["vocab_size"]
    assert (recommended["max_len"], trained.n_too_long) == (13, 1)  # 12 words and the end mark, but not 20


def test_a_transformer_is_recommended_what_the_recipe_for_small_corpora_takes(written, corpus):
    output_dir, finished = written
    splits = load_text_splits("", "", ("de", "en"), train_files=corpus)
    recipe = train_translation.RECIPES["small-corpus"][1]
    fitted, noted = train_translation.fit_to_corpus(recipe, splits)
    recommended = json.loads((output_dir / "report.json").read_text(encoding="utf-8"))["recommendation"][
        "transformer"
    ]
    assert recommended == {name: getattr(fitted, name) for name in recommended}
    flags = " ".join(f"--{name} {value}" for name, value in recommended.items())
    assert f"  {flags}\n" in finished.stdout and flags in noted.notes[-1]
    assert "Uncertain: the rule is made for 20,000 to 200,000 pairs" in finished.stdout


def test_other_forms_of_a_corpus_and_given_heldout_files(tmp_path, capsys, monkeypatch, corpus):
    text = read_parallel_files(corpus)
    tsv, held = tmp_path / "c.tsv", tmp_path / "held.jsonl"
    tsv.write_text("".join(f"{s}\t{t}\n" for s, t in text.pairs()), encoding="utf-8")
    held.write_text('{"translation": {"de": "Ein Wort ist neu", "en": "A word is new"}}\n', encoding="utf-8")
    config = Config(
        train_files=(str(tsv),),
        valid_files=(str(held),),
        test_files=(str(held),),
        languages=("de", "en"),
        lowercase=True,
    )
    monkeypatch.chdir(tmp_path)
    report(config)
    assert Path("runs/corpus/c/report.json").exists()
    numbers = json.loads(Path("runs/corpus/c/report.json").read_text(encoding="utf-8"))
    assert [(row["language"], row["tokens"]) for row in numbers["sizes"][2:4]] == [("de", 4), ("en", 4)]
    assert "source with several targets" in capsys.readouterr().out


def test_the_embedded_corpus_needs_no_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(analyse_corpus, "write_figures", lambda *_: [])  # they take the most time
    report(Config(dataset="phrasebook", output_dir=str(tmp_path)))
    assert "Corpus phrasebook, en to it" in capsys.readouterr().out


def test_flags_are_the_trainers():
    trainer = {f.name: f for f in fields(train_translation.Config)}
    for field in fields(Config):
        assert field.name in trainer
        if field.name not in ("languages", "tracker"):
            assert (field.type, field.default) == (trainer[field.name].type, trainer[field.name].default), (
                field.name
            )
    assert trainer["languages"].default == ("en", "it")  # what None stands for


@pytest.mark.parametrize(
    ("config", "name", "languages"),
    [
        (Config(train_files=("a/x.de.gz", "b/x.en")), "x", ("de", "en")),
        (Config(train_files=("a.src", "b.tgt"), languages=("fr", "en")), "a_b", ("fr", "en")),
        (Config(train_files=("a.txt", "b.txt")), "a_b", ("source", "target")),
        (Config(train_files=("a.tsv.gz",)), "a", ("source", "target")),
        (Config(train_files=("a.jsonl",), languages=("de", "en")), "a", ("de", "en")),
        (Config(), "opus_books.en-it", ("en", "it")),
        (Config(data_dir="/some/books/", languages=("de", "en")), "books.de-en", ("de", "en")),
        (Config(dataset="phrasebook"), "phrasebook", ("en", "it")),
        (Config(dataset="phrasebook", languages=("en", "en")), "phrasebook", ("source", "target")),
    ],
)
def test_a_corpus_is_named_as_its_flags_or_files_are(config, name, languages):
    assert corpus_name(config) == (name, languages)


# --- what cannot be used ---


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("", "", "is empty"),
        ("ein\nzwei\n", "one\n", "2 lines but"),
        ("\n\n", "\n\n", "empty"),  # lines, but none with text
        ("\n\n\n", "one\ntwo\nthree\n", "empty"),  # one side alone
        ("ein\n", None, "cannot read"),
    ],
)
def test_an_unusable_corpus_is_one_line(tmp_path, capsys, source, target, said):
    paths = tmp_path / "c.de", tmp_path / "c.en"
    for path, text in zip(paths, (source, target), strict=True):
        if text is not None:
            path.write_text(text)
    with pytest.raises(SystemExit) as exit:
        main(["--train_files", *map(str, paths), "--output_dir", str(tmp_path / "out")])
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("error: ") and said in line
    assert out == "" and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, corpus):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--output_dir"):
        report(Config(train_files=tuple(map(str, corpus)), output_dir=str(tmp_path / "file" / "out")))


# --- tracking ---


class FakeWandb(types.ModuleType):
    """Keeps what is logged; `fails` names a function that raises."""

    class Error(Exception):
        pass

    def __init__(self, fails: str = ""):
        super().__init__("wandb")
        self.fails, self.options, self.logged, self.dir, self.finished = fails, {}, {}, "folder/files", False

    def _maybe_fail(self, name: str) -> None:
        if self.fails == name:
            raise self.Error(name)

    def login(self, prompt: bool) -> bool:
        self._maybe_fail("login")
        return False

    def init(self, **options) -> "FakeWandb":
        self._maybe_fail("init")
        self.options = options
        return self

    def log(self, values: dict) -> None:
        self._maybe_fail("log")
        self.logged |= values

    def finish(self) -> None:
        self.finished = True

    Settings = staticmethod(dict)

    @staticmethod
    def Table(columns: list, data: list) -> list:
        assert all(len(row) == len(columns) == len(set(columns)) for row in data)
        return data

    @staticmethod
    def Image(path: str) -> bytes:
        return Path(path).read_bytes()


def test_every_section_and_figure_goes_to_the_tracker(tmp_path, monkeypatch, corpus):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    report(Config(train_files=tuple(map(str, corpus)), output_dir=str(tmp_path), tracker="wandb"))
    numbers = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    tables = {key.removeprefix("tables/"): rows for key, rows in wandb.logged.items() if key.startswith("tables/")}
    examples = tables.pop("examples")
    assert tables == {name: [list(row.values()) for row in numbers[name]] for name in tables}
    assert set(tables) == set(numbers) - {"config", "languages", "loaded", "findings", "recommendation"}
    assert examples == [[f["name"], *pair] for f in numbers["findings"] for pair in f["examples"]]
    assert sorted(key for key in wandb.logged if key.startswith("figures/")) == [f"figures/{f}" for f in FIGURES]
    assert (wandb.options["project"], wandb.finished) == ("onecycle", True)


@pytest.mark.parametrize("fails", ["", "login"])
def test_without_a_login_the_tracker_is_offline_and_says_how_to_sync(tmp_path, monkeypatch, fails, capsys):
    wandb = FakeWandb(fails)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE")
    track(Config(), "name", tmp_path, [], [])
    assert wandb.options["mode"] == "offline"
    assert "`wandb sync folder`" in capsys.readouterr().out


@pytest.mark.parametrize("fails", ["init", "log"])
def test_a_failing_tracker_does_not_end_the_tool(tmp_path, monkeypatch, fails, capsys):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(fails))
    track(Config(), "name", tmp_path, [], [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: W&B failed") and str(tmp_path) in line
