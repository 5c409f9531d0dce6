"""The house's rules, read from the source: who may import whom, how a script is built, what four scripts repeat.

What the scripts repeat, they repeat so that each can be read and edited alone. These tests see to it that it stays
the same in all four: who has read one script knows the others.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.stem for path in ROOT.glob("train_*.py"))
# Of each room, the rooms that it may import; data.text and data.images are rooms inside of data.
MAY_IMPORT = {
    "data": {"data"},
    "models": {"models"},
    "training": {"training", "models", "data"},
    "figures": {"figures", "training", "models", "data"},
    "scripts": {"scripts", "figures", "training", "models", "data"},
    "tools": {"tools", "scripts", "figures", "training", "models", "data"},
    "benchmarks": {"benchmarks", "scripts", "training", "models", "data"},
}
STANDARD = {"math", "itertools", "functools", "collections", "concurrent", "dataclasses", "typing"}
MODULES_OF_MODELS = {"torch"} | STANDARD


def room(module: str) -> str:
    """Of a module's name: `train_cifar` is of the scripts, `torch` of itself."""
    first = module.partition(".")[0]
    return "scripts" if first in SCRIPTS else first


def files_of(name: str) -> list[Path]:
    if name == "scripts":
        return [ROOT / f"{script}.py" for script in SCRIPTS]
    return sorted((ROOT / name).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, inside of functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module)
    return names


# --- rooms


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_room_imports_only_what_lies_below_it(name):
    assert files_of(name)
    for path in files_of(name):
        others = {room(module) for module in imported(path)} & {*MAY_IMPORT, "tests"}
        assert others <= MAY_IMPORT[name], path


@pytest.mark.parametrize(("one", "other"), [("text", "images"), ("images", "text")])
def test_text_and_images_know_nothing_of_each_other(one, other):
    for path in files_of(f"data/{one}"):
        assert not [module for module in imported(path) if module.startswith(f"data.{other}")], path


def test_models_need_torch_alone():
    for path in files_of("models"):
        assert {module.partition(".")[0] for module in imported(path)} <= MODULES_OF_MODELS | {"models"}, path


def test_only_figures_draws():
    drawing = {p for name in MAY_IMPORT for p in files_of(name) if "matplotlib" in map(room, imported(p))}
    assert drawing
    assert {path.relative_to(ROOT).parts[0] for path in drawing} == {"figures"}


# --- formatting


WITH_TABLES: set[str] = set()  # files with a table that reads as one in a form of its own alone


def test_code_is_formatted_as_ruff_has_it():
    files = [path for name in [*MAY_IMPORT, "tests"] for path in files_of(name)]
    excepted = re.compile(r"#\s*fmt:\s*(skip|off)")
    kept = {str(p.relative_to(ROOT)) for p in files if excepted.search(p.read_text(encoding="utf-8"))}
    assert kept == WITH_TABLES


# --- what runs the checks


def test_hooks_and_workflow_call_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    commands = [hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"]]
    commands += [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert {"make check", "make quick", "make test"} == set(commands)
    assert {command.removeprefix("make ") for command in commands} <= targets


# --- the form of a script


def tree(script: str) -> ast.Module:
    return ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8"))


def functions(script: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree(script).body if isinstance(node, ast.FunctionDef)}


def parameters(function: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in function.args.posonlyargs + function.args.args]


def n_lines(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def loop_of(script: str) -> tuple[ast.FunctionDef, ast.For]:
    """The loop over updates, and the function that it stands in."""
    found = [
        (function, node)
        for function in functions(script).values()
        for node in ast.walk(function)
        if isinstance(node, ast.For) and ast.unparse(node.iter) == "loop"
    ]
    (loop,) = found
    return loop


def blocks(node: ast.AST, depth: int = 0) -> Iterator[int]:
    """How deep the blocks inside of a statement lie."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.For | ast.While | ast.If | ast.With | ast.Try):
            yield depth + 1
            yield from blocks(child, depth + 1)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_has_the_functions_that_people_edit(script):
    found = functions(script)
    assert parameters(found["load_splits"]) == ["config"]
    assert parameters(found["build_model"])[0] == "config"
    assert parameters(found["build_optimizer"]) == ["model", "config", "mixed_precision"]
    assert parameters(found["learning_rate"]) == ["config", "step", "total_steps"]
    assert parameters(found["train_update"])[:3] == ["accelerator", "model", "optimizer"]
    assert parameters(found["train_update"])[-2:] == ["step", "lr"]
    assert "config" in parameters(found["train_update"])
    assert parameters(found["evaluate"])[:2] == ["accelerator", "model"]
    assert "config" in parameters(found["evaluate"])
    assert parameters(found["report_test"])[:3] == ["run", "loop", "model"]
    assert parameters(found["main"]) == ["config"]
    objective = found["token_sums" if script == "train_translation" else "objective"]
    assert objective.returns is not None and ast.unparse(objective.returns) == "dict[str, Tensor]"
    order = ["build_model", "build_optimizer", "learning_rate", objective.name, "train_update", "evaluate", "main"]
    assert [name for name in found if name in order] == order


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_begins_with_its_choices(script):
    classes = {node.name: node for node in tree(script).body if isinstance(node, ast.ClassDef)}
    assert [ast.unparse(base) for base in classes["Config"].bases] == ["RunConfig"]
    assigned = {
        ast.unparse(target)
        for node in tree(script).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    }
    assert {"MAY_CHANGE", "RECIPES"} <= assigned


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_function_of_a_run_reads_like_a_table_of_contents(script):
    function, loop = loop_of(script)
    assert n_lines(function) < 100
    assert n_lines(loop) < 35
    assert max(blocks(loop)) <= 2  # what is due, and a condition inside of it
    assert not [node for node in ast.walk(loop) if isinstance(node, ast.For | ast.While) and node is not loop]


def in_order(source: str, *steps: str) -> None:
    place = 0
    for step in steps:
        place = source.find(step, place)
        assert place >= 0, step


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_loop_has_the_same_form_in_all_scripts(script):
    """These in this order, whatever an edit puts between them."""
    _, loop = loop_of(script)
    planned = ast.unparse(loop.target)
    in_order(
        ast.unparse(loop),
        "if loop.due('validate')",
        "loop.log_validation(metrics, ",
        "if loop.due('save'):",
        "loop.save()",
        "if loop.last:",
        "break",
        "learning_rate(config, loop.step, total_steps)",
        f"update({planned}, loop.step, lr",
        "loop.count(sums, ",
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_update_goes_through_the_same_steps_in_all_scripts(script):
    """These in this order, whatever an edit puts between them."""
    in_order(
        ast.unparse(functions(script)["train_update"]),
        "model.train()",
        "set_lr(optimizer, ",
        "n_parts = accelerator.num_processes * config.gradient_accumulation_steps",
        "for part in range(accelerator.process_index, n_parts, accelerator.num_processes):",
        "seed_micro_batch(config.seed, step, part)",
        "with accelerator.accumulate(model):",
        "accelerator.backward(",
        "if accelerator.sync_gradients:",
        "clip_gradients(accelerator, model, config.max_grad_norm)",
        "optimizer.step()",
        "optimizer.zero_grad()",
        "add_to(sums, terms)",
        "return (sums, gradient_norm",
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_under_the_shared_command_line(script):
    last = tree(script).body[-1]
    assert isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"
    (call,) = last.body
    assert ast.unparse(call) == "run_script(main, RECIPES, __doc__, user_errors=(DataError,))"
