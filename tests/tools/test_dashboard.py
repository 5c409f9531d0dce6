import json
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("wandb_workspaces")

from wandb_workspaces.workspaces import internal

from tools import dashboard
from tools.dashboard import VIEWS, main, title_of
from training.tracking import PROJECT


def run_tool(monkeypatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dashboard", *args])
    try:
        dashboard.call_with_flags(main)
    except SystemExit as end:
        return end.code
    return 0


def test_without_a_login_the_views_are_checked_and_written(tmp_path, monkeypatch, capsys):
    output = tmp_path / "views.json"
    assert run_tool(monkeypatch, "--output", str(output)) == 0
    assert "not logged in" in capsys.readouterr().out
    views = json.loads(output.read_text())
    assert [view["displayName"] for view in views] == [view.title for view in VIEWS]
    assert {"compare recipes", "compare seeds", "speed"} < {view["displayName"] for view in views}
    (runs,) = views[0]["spec"]["section"]["runSets"]
    assert [key["name"] for key in runs["grouping"]] == ["script.value", "recipe.value"]  # the seed is averaged
    assert "run:displayName" in runs["runFeed"]["columnPinned"] and runs.get("baselineRunId") is None


def test_the_baseline_is_a_run_or_the_folder_of_one(tmp_path, monkeypatch, capsys):
    for begun, name in (("20260101_000000", "old"), ("20260102_000000", "abc")):
        folder = tmp_path / "run" / "wandb" / f"offline-run-{begun}-{name}"
        folder.mkdir(parents=True)
        (folder / f"run-{name}.wandb").touch()
    assert dashboard.run_id(str(tmp_path / "run")) == dashboard.run_id("abc") == "abc"
    assert run_tool(monkeypatch, "--dry_run", "--baseline", "abc", "--output", str(tmp_path / "views.json")) == 0
    (runs,) = json.loads((tmp_path / "views.json").read_text())[0]["spec"]["section"]["runSets"]
    assert runs["baselineRunId"]
    (tmp_path / "empty").mkdir()
    assert run_tool(monkeypatch, "--dry_run", "--baseline", str(tmp_path / "empty")) == 2
    assert "has no run of W&B" in capsys.readouterr().err


@pytest.mark.parametrize("there", [False, True])
def test_with_a_login_each_view_is_saved_in_the_place_of_the_one_of_its_name(monkeypatch, capsys, there):
    saved = []

    def find(entity, project, name):
        if there:
            return {"id": f"id of {name}"}
        raise ValueError("not found")

    def upsert(view):
        saved.append((view.entity, view.project, view.name, view.id))
        return {"upsertView": {"view": {"id": "1", "name": view.name}}}

    monkeypatch.setattr(internal, "get_view_dict", find)
    monkeypatch.setattr(internal, "upsert_view2", upsert)
    monkeypatch.setattr(dashboard, "logged_in_entity", lambda: "me")
    monkeypatch.setattr("wandb.Api", lambda: SimpleNamespace(client=SimpleNamespace(app_url="https://wandb.ai/")))
    assert run_tool(monkeypatch) == 0
    slugs = [view.slug for view in VIEWS]
    assert saved == [("me", PROJECT, f"nw-{slug}-v", f"id of {slug}" if there else "") for slug in slugs]
    assert f"speed: https://wandb.ai/me/{PROJECT}?nw={PROJECT}speed" in capsys.readouterr().out


def test_what_w_and_b_refuses_is_told_in_a_line_without_the_key(monkeypatch, capsys):
    def refuse(*args):
        raise RuntimeError("permission denied for key 0123456789")

    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    monkeypatch.setattr(internal, "get_view_dict", refuse)
    monkeypatch.setattr(dashboard, "logged_in_entity", lambda: "me")
    assert run_tool(monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: W&B did not take the view: permission denied for key ***")


def test_a_missing_package_is_told_of_in_a_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert run_tool(monkeypatch, "--dry_run") == 2
    assert "pip install wandb-workspaces" in capsys.readouterr().err


def test_titles_name_the_metric_once():
    assert title_of(["train/nll", "valid/nll"]) == "negative log-likelihood: training, validation"
    assert title_of(["best/valid/bleu"]) == "best validation: BLEU"
    assert title_of(["lr"]) == "learning rate"
