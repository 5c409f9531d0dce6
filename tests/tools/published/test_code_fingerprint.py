import subprocess

import pytest

from tools.published.catalogue import ROOT
from tools.published.code_fingerprint import changed_since, commit_of, files_of, fingerprint

FILES = {
    "train_x.py": "import json\nfrom models.net import Net\n\n\ndef late():\n    import data.text.read\n",
    "models/net.py": '"""A net."""\nfrom models import part  # comment\n\n\nclass Net:\n    width = part.WIDTH\n',
    "models/part.py": "WIDTH = 3\n",
    "data/text/read.py": "",
    "tools/other.py": "",
    "accelerate_configs/cpu.yaml": "num_processes: 1\n",
}
CODE = ["data/text/read.py", "models/net.py", "models/part.py", "train_x.py"]


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_files_are_those_that_the_script_imports(root):
    assert files_of("train_x.py", root) == CODE
    unet = files_of("train_unet.py", ROOT)
    assert {"train_unet.py", "models/unet.py", "training/loop.py", "data/images/pets.py"} <= set(unet)
    assert not [path for path in unet if path.startswith(("tools", "tests")) or "transformer" in path]


def test_code_changes_the_fingerprint_and_words_do_not(root):
    before = fingerprint("train_x.py", "cpu", root)
    net = root / "models" / "net.py"
    documented = 'class Net:\n    """One."""\n\n    width = (part.WIDTH)\n'
    net.write_text(f'"""The net."""\n\nfrom models import part\n\n\n{documented}')
    (root / "tools" / "other.py").write_text("CHANGED = 1\n")
    assert fingerprint("train_x.py", "cpu", root) == before
    net.write_text(net.read_text().replace("WIDTH)", "WIDTH + 1)"))
    changed = fingerprint("train_x.py", "cpu", root)
    assert changed != before and len(changed) == 16
    (root / "accelerate_configs" / "cpu.yaml").write_text("num_processes: 2\n")
    assert fingerprint("train_x.py", "cpu", root) not in (before, changed)


def test_what_changed_since_a_commit_is_named(root):
    def git(*arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x@x")
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)

    assert commit_of("train_x.py", root) is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = commit_of("train_x.py", root)
    (root / "tools" / "other.py").write_text("CHANGED = 1\n")
    assert commit_of("train_x.py", root) == commit and len(commit) == 40
    (root / "models" / "net.py").write_text(FILES["models/net.py"].replace("comment", "another"))
    (root / "models" / "part.py").write_text("WIDTH = 4\n")
    assert changed_since(commit, "train_x.py", root) == ["models/part.py"]
    assert commit_of("train_x.py", root) == f"{commit}-dirty"
    assert changed_since("0" * 40, "train_x.py", root) == []
