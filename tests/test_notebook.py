"""notebooks/onecycle.ipynb, executed on the CPU: cloned, installed, trained, cut, resumed, shown and used."""

import copy
import os
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "onecycle.ipynb"
TINY = (
    "--d_model 16 --n_heads 2 --d_ff 16 --n_encoder_layers 1 --n_decoder_layers 1 --max_tokens 256 --log_every 1 "
    "--valid_sentences 2 --test_sentences 10 --beam_size 1 --eval_max_len 8 --tracker none"
)


def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def parameters(repository: Path, keep: Path, steps: int) -> str:
    values = {"REPOSITORY": str(repository), "LAUNCH": "cpu", "KEEP": str(keep)}
    values["FLAGS"] = f"{TINY} --max_train_steps {steps}"
    return "\n".join(f"{name} = {value!r}" for name, value in values.items())


def index_of(cells: list, name: str) -> int:
    return next(i for i, cell in enumerate(cells) if cell["id"] == name)


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.training
@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no repository to clone from")
def test_it_runs_from_a_bare_session_to_a_translation_and_goes_on_after_a_cut(tmp_path, monkeypatch):
    book = notebook()
    keep = tmp_path / "kept"
    begin = index_of(book.cells, "parameters")
    book.cells.insert(begin + 1, nbformat.v4.new_code_cell(parameters(ROOT, keep, 4)))
    train = index_of(book.cells, "train")
    again = copy.deepcopy(book.cells[train])
    longer = nbformat.v4.new_code_cell(parameters(ROOT, keep, 6))
    book.cells[train + 1 : train + 1] = [longer, again]  # what the next session runs, with more to do
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    run = keep / "translation" / "demo"
    cells = {cell["id"]: cell for cell in book.cells}
    assert (tmp_path / "onecycle" / "train_unet.py").exists(), "it was not cloned"
    assert "here, about" in printed(cells["doctor"])
    assert f"the run is kept in {run}" in printed(cells["keep"])
    assert "4/4" in printed(book.cells[train]) and "resuming" not in printed(book.cells[train])
    assert f"resuming {run}/checkpoints/checkpoint-4: --max_train_steps 6" in printed(again)
    shown = [output for output in cells["figures"].outputs if "image/png" in output.get("data", {})]
    assert len(shown) == len(list((run / "figures").glob("*.png"))) >= 5
    assert "test/bleu" in printed(cells["figures"])
    assert printed(cells["use"]).strip(), "nothing was translated"


def test_it_is_kept_without_outputs():
    for cell in notebook().cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_its_launch_file_and_recipe_are_there():
    values: dict = {}
    exec(notebook().cells[index_of(notebook().cells, "parameters")].source, values)
    assert (ROOT / "accelerate_configs" / f"{values['LAUNCH']}.yaml").is_file()
    assert (ROOT / f"train_{values['SCRIPT']}.py").is_file()
