"""The package as its users have it: installed in a fresh environment, called from elsewhere."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

KEPT = ("*.py", "lab", "pyproject.toml", "requirements.txt", "README.md", "LICENSE")
USE = """
import sys, torch
from hadamard import HadamardLinear
from metrics import dead_neurons, effective_rank
z = HadamardLinear(8, 16)(torch.randn(64, 8))
print(tuple(z.shape), dead_neurons(z).shape, effective_rank(z) > 0, "gymnasium" in sys.modules)
"""


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """Call a command of the environment, in a folder without the project: the finished process."""
    source, there = tmp_path_factory.mktemp("source") / "project", tmp_path_factory.mktemp("there")
    source.mkdir()  # a copy, as pip builds beside the source
    for path in (path for pattern in KEPT for path in ROOT.glob(pattern)):
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, source / path.name)
    subprocess.run([sys.executable, "-m", "venv", there / "env"], check=True)
    bin_ = there / "env" / "bin"
    pip = [bin_ / "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, source], check=True)
    (there / "elsewhere").mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def call(name, *arguments):
        arguments = [source if argument == "SOURCE" else argument for argument in arguments]
        command = [bin_ / name, *map(str, arguments)]
        return subprocess.run(
            command, cwd=there / "elsewhere", env=environment, capture_output=True, text=True
        )

    return call


@pytest.mark.long
def test_the_installed_package_works_from_any_folder(call):
    done = call("python", "-c", USE)
    assert done.stdout == "(64, 16) torch.Size([16]) True False\n", done.stderr
    done = call("python", "-c", "import importlib.metadata as m; print(m.version('hadamard-rl'))")
    assert done.stdout.count(".") == 2, done.stderr

    named = ("--algorithms", "ppo", "--variants", "relu", "--seeds", 1)
    small = ("--total-timesteps", 64, "--num-envs", 4, "--num-steps", 16, "--latent-dim", 512)
    small += ("--metrics-samples", 512, "--device", "cpu")
    done = call("hr-sweep", *named, "--", *small)
    assert done.returncode == 0, done.stderr
    done = call("hr-report", "runs")
    assert "1 run, of which" in done.stdout, done.stderr
    done = call("python", "-c", "import glob; print(*glob.glob('runs/*__s1__*'))")
    done = call("hr-evaluate", done.stdout.strip(), "--games", 0)
    assert done.returncode == 2
    assert done.stderr.startswith("hr-evaluate: error: --games must be between 1 and 1024, not 0")

    done = call("pip", "install", "--quiet", "--no-deps", "--editable", "SOURCE")
    assert done.returncode == 0, done.stderr
    done = call(
        "python", "-c", "import hadamard, metrics, lab.sweep.plan; print(hadamard.__file__)"
    )
    assert done.stdout.endswith("/project/hadamard.py\n"), done.stderr
    done = call("hr-sweep", *named, "--dry-run", "--", *small)
    assert "done" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["dqn_atari", "regression_demo"])
def test_a_script_needs_no_installation_in_any_folder(name, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, ROOT / f"{name}.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {name}.py ")
