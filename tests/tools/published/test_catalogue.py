import importlib

import pytest
import yaml

from tools.published.catalogue import CHOSEN_ON, ROOT, Entry, named, read_catalogue
from training.cli import parse_config
from training.errors import UsageError

FIELDS = {
    "name": "small",
    "title": "a small run",
    "script": "train_cifar.py",
    "recipe": "demo",
    "launch": "cpu",
    "seeds": [0],
    "minutes": 2,
    "hardware": "two cores",
    "chosen_on": "validation",
}


def catalogue(tmp_path, *records):
    for name in ("train_cifar.py", "accelerate_configs/cpu.yaml", "results/records.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "results" / "records.yaml").write_text(yaml.safe_dump({"records": list(records)}))
    return read_catalogue(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"minute": 3}, "records.yaml, small: unknown field `minute`"),
        ({"seeds": "0"}, "`seeds` must be a list of whole numbers"),
        ({"seeds": [0, 0]}, "`seeds` is a list of different"),
        ({"minutes": True}, "`minutes` must be a number"),
        ({"minutes": 0}, "`minutes` is more than 0"),
        ({"chosen_on": "luck"}, "`chosen_on` is 'luck'; it is one of validation, test"),
        ({"script": "train_cat.py"}, "no script train_cat.py"),
        ({"launch": "gpu"}, "no accelerate_configs/gpu.yaml"),
        ({"task": "classify"}, "`task` and `score` stand together"),
        ({"course": {"says": "90 %"}}, "the field `source` is missing"),
        ({"course": "90 %"}, "`course` must be|`course` has the fields"),
        ({"flags": "--judge {run:other}"}, r"\{run:other\} must stand before it"),
        ({"name": "a/b"}, "`name` becomes a file's"),
    ],
)
def test_what_is_wrong_in_an_entry_is_said(tmp_path, change, said):
    with pytest.raises(UsageError, match=said):
        catalogue(tmp_path, FIELDS | change)


def test_what_is_wrong_in_the_file_is_said(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_catalogue(tmp_path)
    catalogue(tmp_path)
    for text, said in (("records: [", "is no YAML"), ("rows: []", "must hold `records:`")):
        (tmp_path / "results" / "records.yaml").write_text(text)
        with pytest.raises(UsageError, match=said):
            read_catalogue(tmp_path)
    with pytest.raises(UsageError, match="small: the name stands twice"):
        catalogue(tmp_path, FIELDS, FIELDS)
    without = {key: value for key, value in FIELDS.items() if key != "title"}
    with pytest.raises(UsageError, match="the field `title` is missing"):
        catalogue(tmp_path, without)


def test_the_command_names_no_folder_of_this_machine():
    entry = Entry(**FIELDS, threads=1, flags="--data_dir {data}/cifar10 --judge {run:judge}")
    assert entry.command(2) == (
        "OMP_NUM_THREADS=1 accelerate launch --config_file accelerate_configs/cpu.yaml train_cifar.py demo "
        "--data_dir $ONECYCLE_DATA/cifar10 --judge runs/records/judge/seed0 --seed 2 --tracker none "
        "--output_dir runs/records/small/seed2"
    )
    assert entry.arguments(2, "/my data")[2] == "/my data/cifar10" and entry.needs == ["judge"]
    assert [str(path) for path in entry.data_files("/my data")] == ["/my data/cifar10"]


def test_entries_are_found_by_name(tmp_path):
    entries = catalogue(tmp_path, FIELDS, FIELDS | {"name": "other"})
    assert named(entries, []) == entries and [entry.name for entry in named(entries, ["other"])] == ["other"]
    with pytest.raises(UsageError, match="has no third; it has small, other"):
        named(entries, ["third"])


def test_the_scripts_take_the_flags_of_what_is_published():
    for entry in read_catalogue():
        script = importlib.import_module(entry.script.removesuffix(".py"))
        config = parse_config(script.RECIPES, "", entry.arguments(entry.seeds[0], "/data"))
        assert config.recipe == entry.recipe and config.output_dir == f"runs/records/{entry.name}/seed0"
        assert entry.chosen_on in CHOSEN_ON
    assert len(list((ROOT / "results").glob("*.metrics.jsonl"))) <= len(read_catalogue())
