"""`--to hub`: a folder in the form of the Hugging Face hub, which brings the code along that opens it.

Weights, config.json and tokenizers as of `--to safetensors`, a model card, its figures, and a package
`onecycle_<script>` of copies of the modelling code. It is opened with the folder alone on Python's path.
"""

import ast
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file

from tools.exporting import safetensors_folder
from tools.exporting.comparison import Difference, largest_difference
from tools.exporting.model_card import figures_shown, model_card
from tools.exporting.trained_model import TrainedModel
from training.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
OURS = ("models", "data", "tools")

OPEN_ALONE = """
import sys
from importlib import import_module
from safetensors.torch import load_file, save_file
folder, package, inputs, outputs = sys.argv[1:]
sys.path.insert(0, folder)
opened = import_module(package).from_pretrained(folder)
save_file({"outputs": opened.outputs(**load_file(inputs)).contiguous()}, outputs)
"""


def write(trained: TrainedModel, folder: Path) -> None:
    """Fill an empty folder."""
    safetensors_folder.write(trained, folder)
    copy_modelling_code(trained.script, folder / package_name(trained.script))
    for figure in figures_shown(trained):
        (folder / "figures").mkdir(exist_ok=True)
        shutil.copy(figure, folder / "figures" / figure.name)
    (folder / "README.md").write_text(str(model_card(trained, package_name(trained.script))), encoding="utf-8")


def differences(trained: TrainedModel, folder: Path) -> list[Difference]:
    """How far the model is from the run's that a new Python opens, of which only `folder` is on its path."""
    expected = trained.pretrained.outputs(**trained.inputs)
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = Path(scratch) / "inputs.safetensors", Path(scratch) / "outputs.safetensors"
        save_file(trained.inputs, inputs)
        words = [str(folder.resolve()), package_name(trained.script), str(inputs), str(outputs)]
        alone = subprocess.run(  # -I: neither this folder nor PYTHONPATH
            [sys.executable, "-I", "-c", OPEN_ALONE, *words], cwd=scratch, capture_output=True, text=True
        )
        if alone.returncode:
            raise RuntimeError(f"the exported folder cannot be opened alone:\n{alone.stderr}")
        found = load_file(outputs)["outputs"]
    shutil.rmtree(folder / package_name(trained.script) / "__pycache__", ignore_errors=True)
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)
    return [largest_difference("the outputs", expected, found, safetensors_folder.LIMIT)]


def package_name(script: str) -> str:
    return f"onecycle_{script}"


def copy_modelling_code(script: str, package: Path) -> None:
    """Make a package of tools/pretrained/<script>.py and of all of the project that it imports."""
    first = ROOT / "tools" / "pretrained" / f"{script}.py"
    waiting, copied = [first], set()
    while waiting:
        path = waiting.pop()
        if path in copied:
            continue
        copied.add(path)
        source = path.read_text(encoding="utf-8")
        waiting += [ROOT / f"{name.replace('.', '/')}.py" for name in imported_modules(source)]
        copy = package / ("__init__.py" if path == first else place_in_package(path))
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(with_imports_of(package.name, source), encoding="utf-8")


def imported_modules(source: str) -> list[str]:
    """The project's own modules in `from MODULE import ..`, the one form that the copied files have."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return [node.module for node in nodes if node.module and node.module.partition(".")[0] in OURS]


def place_in_package(path: Path) -> Path:
    """models/unet.py stays where it is, tools/pretrained/folder.py becomes folder.py."""
    below = path.relative_to(ROOT)
    return Path(below.name) if below.parts[0] == "tools" else below


def with_imports_of(package: str, source: str) -> str:
    """The source with imports of the project's modules from `package` instead."""
    source = re.sub(r"(?m)^(\s*)from tools\.pretrained\.", rf"\1from {package}.", source)
    return re.sub(r"(?m)^(\s*)from (models|data)\.", rf"\1from {package}.\2.", source)


def require_login() -> None:
    """Raise UsageError where nobody is logged in to the hub."""
    if huggingface_hub.get_token() is None:
        raise UsageError("--push_to_hub wants a login: `hf auth login`, or set HF_TOKEN; or leave it out")


def push(folder: Path, name: str, private: bool) -> str:
    """Upload an exported folder to USER/NAME, which is made if need be; its address.

    Raises UsageError where the hub refuses; the folder stays.
    """
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=name, folder_path=folder, commit_message="A model trained with onecycle")
    except (HfHubHTTPError, huggingface_hub.errors.HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{name} cannot be uploaded to ({reason}); the folder stays: {folder}") from error
    return str(done.commit_url if hasattr(done, "commit_url") else done)
