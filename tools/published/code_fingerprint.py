"""What code a run was made by: a fingerprint of the files of the repository that its script imports."""

import ast
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)  # what may have a docstring


def files_of(script: str, root: Path) -> list[str]:
    """The script and whatever files of the repository it imports, directly or not, as paths from `root`, sorted."""
    found, waiting = set(), [script]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported_files(root / path, root)
    return sorted(found)


def _imported_files(path: Path, root: Path) -> Iterator[str]:
    """The files of the repository that a file imports, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for module in modules:
            file = f"{module.replace('.', '/')}.py"
            if (root / file).is_file():
                yield file


def fingerprint(script: str, launch: str, root: Path) -> str:
    """16 hexadecimal digits that change with the code that a run of `script` executes, or with its launch YAML.

    Comments, docstrings and formatting change nothing. Versions of Python may write the same code differently, and
    then their fingerprints differ.
    """
    digest = hashlib.sha256((root / "accelerate_configs" / f"{launch}.yaml").read_bytes())
    for path in files_of(script, root):
        digest.update(f"{path}\n{_code_alone((root / path).read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:16]


def _code_alone(source: str) -> str:
    """The source without its comments and docstrings, in one form."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body[:] = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def changed_since(commit: str, script: str, root: Path) -> list[str]:
    """The files of `script` whose code differs from that at `commit`; none where the commit is not at hand."""
    commit = commit.removesuffix("-dirty")
    files = files_of(script, root)
    try:
        listed = _git(root, "diff", "--name-only", commit, "--", *files)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [path for path in listed.splitlines() if _differs(path, commit, root)]


def _differs(path: str, commit: str, root: Path) -> bool:
    try:
        before = _git(root, "show", f"{commit}:{path}")
    except subprocess.CalledProcessError:  # the file is new
        return True
    return _code_alone(before) != _code_alone((root / path).read_text(encoding="utf-8"))


def _git(root: Path, *arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return run.stdout


def commit_of(script: str, root: Path) -> str | None:
    """The commit of the code of `script`, with "-dirty" where its files differ; None outside a repository.

    Other files, such as records that have just been written, may differ.
    """
    try:
        head = _git(root, "rev-parse", "HEAD").strip()
        differing = _git(root, "status", "--porcelain", "--", *files_of(script, root))
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-dirty" if differing else head
