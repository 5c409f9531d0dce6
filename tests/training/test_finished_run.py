import hashlib
import json
from pathlib import Path

import pytest

from tools.classify import Classifier
from tools.sample import Sampler
from tools.segment import Segmenter
from tools.translate import Translator
from train_cifar import RECIPES, Config
from training.errors import UsageError
from training.finished_run import open_run, script_of_run

OPENED_BY = {"translation": Translator, "unet": Segmenter, "cvae": Sampler, "cifar": Classifier}


def checkpoint_with(folder: Path, state: dict) -> Path:
    """The folder of a run whose only checkpoint holds `state` and no weights."""
    checkpoint = folder / "checkpoints" / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    text = json.dumps({"step": 7, **state})
    (checkpoint / "state.json").write_text(text)
    manifest = {"state.json": [len(text), hashlib.sha256(text.encode()).hexdigest()]}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("theirs", OPENED_BY)
def test_each_tool_refuses_the_runs_of_other_scripts_and_says_whose_they_are(theirs, tmp_path):
    run = checkpoint_with(tmp_path, {"script": theirs, "config": {}})
    assert script_of_run(run) == script_of_run(run / "checkpoints" / "checkpoint-7") == theirs
    for script, opener in OPENED_BY.items():
        if script != theirs:
            with pytest.raises(UsageError) as refused:
                opener(run)
            (line,) = str(refused.value).splitlines()
            assert f"is of train_{theirs}.py, not of train_{script}.py" in line and str(run) in line


def test_a_checkpoint_that_does_not_name_its_script_is_known_by_a_flag(tmp_path):
    old = checkpoint_with(tmp_path / "old", {"config": {"recipe": "resnet", "cutout": 3}})
    assert script_of_run(old) == "cifar"
    assert open_run(old, "cifar", Config).config.cutout == 3
    strange = checkpoint_with(tmp_path / "strange", {"config": {"lr": 0.1}})
    with pytest.raises(UsageError, match="of none of the training scripts"):
        script_of_run(strange)
    with pytest.raises(UsageError, match=r"is not of train_cifar\.py"):
        open_run(strange, "cifar", Config)


def test_old_rules_hold_where_the_config_lacks_the_field_and_the_summary_is_that_of_the_run(tmp_path):
    _, config = RECIPES["demo"]
    run = checkpoint_with(tmp_path, {"script": "cifar", "config": {"recipe": "demo", "epochs": config.epochs}})
    opened = open_run(run, "cifar", Config, {"valid_fraction": 0.0, "epochs": 99})
    assert (opened.config.valid_fraction, opened.config.epochs) == (0.0, config.epochs)
    assert opened.folder == run and opened.summary == {}
    (run / "summary.json").write_text('{"test/accuracy": 0.5}')
    assert open_run(run / "checkpoints" / "checkpoint-7", "cifar", Config).summary == {"test/accuracy": 0.5}
    with pytest.raises(UsageError, match=r"holds no data\.json"):
        opened.data  # noqa: B018  # the property raises


def test_a_folder_without_a_run_is_refused(tmp_path):
    for open_it in (script_of_run, *OPENED_BY.values()):
        with pytest.raises(UsageError, match="no checkpoint there"):
            open_it(tmp_path)
