"""The trials that are asked for: each setting can be given to the script, and of a corpus only training is cut."""

import json

import pytest

import train_translation
from benchmarks import translation_settings
from benchmarks.settings_trials import Trial
from benchmarks.translation_settings import VARIANTS, Config, main, trials_of
from data.text.corpus import load_text_splits
from data.text.phrasebook import phrasebook_splits
from training.cli import parse_config


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
    """1,000 pairs of the phrasebook, source and target."""
    paths = tmp_path / "corpus.en", tmp_path / "corpus.it"
    for side, path in enumerate(paths):
        path.write_text(
            "".join(f"{pair[side]}\n" for pair in phrasebook_splits()[0][::20][:1000]), encoding="utf-8"
        )
    return str(paths[0]), str(paths[1])


def config_of(trial: Trial) -> train_translation.Config:
    return parse_config(train_translation.RECIPES, "", list(trial.flags))


def test_each_setting_is_a_run_of_its_own_that_the_script_takes(files, tmp_path):
    config = Config((f"en-it={','.join(files)}",), str(tmp_path / "out.jsonl"), minutes=1, epochs=3, seeds=2)
    trials = trials_of(config)
    settings = {trial.name: config_of(trial) for trial in trials[: len(VARIANTS)]}
    assert list(settings) == [f"en-it: {name}" for name in VARIANTS] and len(trials) == 2 * len(VARIANTS)
    assert len({trial.flags for trial in trials}) == len(trials)
    for name, found in settings.items():
        train_translation.check_options(found)
        assert found.train_files == files and found.languages == ("en", "it") and not found.final_test
        epochs = {"twice": 6, "all of these": 6, "half": 2}  # half of 3, rounded up
        assert found.epochs == next((n for word, n in epochs.items() if word in name), 3)
    assert settings["en-it: r-drop 5, dropout 0.2"].consistency_weight == 5


def test_of_a_corpus_that_is_cut_the_held_out_splits_are_those_of_the_whole(files, tmp_path):
    config = Config((f"en-it={','.join(files)}",), str(tmp_path / "out.jsonl"), minutes=1, pairs=100)
    whole = load_text_splits("", "", ("en", "it"), train_files=files)
    found = train_translation.load_splits(config_of(trials_of(config)[0]))
    assert found.valid == whole.valid and len(found.train) == 100
    assert set(found.train.pairs()) <= set(whole.train.pairs())
    assert not set(found.train.sources) & set(whole.test.sources)


@pytest.mark.parametrize(
    "flags, mend",
    [
        (["--corpus", "corpus.en,corpus.it"], "give it as de-en=SOURCE,TARGET"),
        (["--corpus", "en-it=a,b", "--variants", "dropout 0.25"], "'dropout 0.3'"),
        (["--corpus", "en-it=/nowhere/a,/nowhere/b", "--pairs", "10"], "/nowhere/a"),
    ],
)
def test_what_cannot_be_tried_ends_with_2_and_one_line(flags, mend, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([*flags, "--minutes", "1", "--output", str(tmp_path / "out.jsonl")])
    (shown,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and shown.startswith("error: ") and mend in shown


def test_a_table_for_each_corpus(files, tmp_path, monkeypatch, capsys):
    def made(script, trials, **options) -> list[dict]:
        lines = [
            {"name": t.name, "exit_code": 0, "valid": {"bleu": i}, "train_seconds": 1.0}
            for i, t in enumerate(trials)
        ]
        return json.loads(json.dumps(lines))

    monkeypatch.setattr(translation_settings, "run_trials", made)
    both = [f"{name}={','.join(files)}" for name in ("en-it", "it-en")]
    main(
        [
            "--corpus",
            *both,
            "--minutes",
            "1",
            "--output",
            str(tmp_path / "o"),
            "--variants",
            "baseline",
            "dropout 0.2",
        ]
    )
    tables = capsys.readouterr().out.split("\n\n")
    assert len([line for line in tables if "en-it" in line or "it-en" in line]) == 2
    assert "dropout 0.2" in tables[-1] and "baseline" in tables[-1]
