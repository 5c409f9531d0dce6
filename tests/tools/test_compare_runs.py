import json

import pytest

from tools.compare_runs import as_table, compare, main
from training.errors import UsageError


def write_run(path, summary=None, **config):
    path.mkdir()
    config = {"lr": 0.1, "probe_weight": 0.0, "label_dropout": 0.0, "output_dir": str(path)} | config
    (path / "config.json").write_text(json.dumps(config))
    if summary is not None:
        described = {"command": f"train_cvae.py {path.name}", "git_commit": "c0ffee"}
        (path / "summary.json").write_text(json.dumps(summary | described))
    return path


@pytest.fixture
def runs(tmp_path):
    return {
        "plain": write_run(tmp_path / "a", {"test/elbo": -90.25, "test/hits": 0.5}),
        "probe": write_run(tmp_path / "b", {"test/elbo": -91.0, "test/hits": 0.751234}, probe_weight=2.0),
        "dropout": write_run(tmp_path / "c", {"test/elbo": -90.5, "test/hits": 0.4}, label_dropout=0.1),
    }


def test_each_run_stands_with_its_numbers_and_the_settings_of_its_own(runs):
    rows = compare(runs, ("test/hits", "test/elbo"))
    assert [row["settings"] for row in rows] == [
        {"probe_weight": 0.0, "label_dropout": 0.0},
        {"probe_weight": 2.0},
        {"label_dropout": 0.1},
    ]
    assert rows[1]["numbers"] == {"test/hits": 0.751234, "test/elbo": -91.0}
    assert rows[2]["command"] == "train_cvae.py c" and rows[2]["commit"] == "c0ffee"
    header, rule, *lines = as_table(rows).splitlines()
    assert header == "| run | settings | test: hits | test: ELBO |" and rule.count("|") == header.count("|")
    assert lines[1] == "| probe | probe_weight 2.0 | 0.75123 | -91.00 nats |"


def test_the_table_is_printed_and_kept(runs, tmp_path, capsys):
    output = tmp_path / "out" / "levers.json"
    main(tuple(f"{name}={path}" for name, path in runs.items()), ("test/elbo",), str(output))
    rows = json.loads(output.read_text())["rows"]
    assert capsys.readouterr().out.strip() == as_table(rows)
    assert [row["name"] for row in rows] == ["plain", "probe", "dropout"]


def test_what_cannot_be_compared_is_refused_in_one_line(runs, tmp_path, capsys):
    going = write_run(tmp_path / "going")
    other = write_run(tmp_path / "other", {"test/elbo": 1.0}, beam_size=4)
    with pytest.raises(UsageError, match="let the run end first"):
        compare(runs | {"going": going}, ("test/elbo",))
    with pytest.raises(UsageError, match="another script"):
        compare(runs | {"other": other}, ("test/elbo",))
    with pytest.raises(SystemExit) as end:
        main((f"a={runs['plain']}",), ("test/dice",))
    error = capsys.readouterr().err
    assert end.value.code == 2 and "has no test/dice; it has test/elbo, test/hits" in error
    assert error.count("\n") == 1
