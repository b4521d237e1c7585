"""Who may import whom (docs/architecture.md), and that importing does nothing but define."""

import ast
import graphlib
import subprocess
import sys

import pytest
from conftest import ENV, ROOT

SCRIPTS = {"dqn_atari", "ppo_atari", "pqn_atari"}
COMMON, TRAINING = {"lab.common"}, {"lab.common", "lab.training", "hadamard", "metrics"}
# A part of the project -> what it may import of the project beside itself.
MAY_IMPORT = {
    "hadamard": set(),
    "metrics": set(),
    "lab.common": set(),
    "lab.training": TRAINING,
    **dict.fromkeys(SCRIPTS, TRAINING),
    "lab.sweep": TRAINING,
    "lab.bench": TRAINING,
    "lab.evaluate": TRAINING,
    "lab.report": COMMON,
    "lab.regression": COMMON | {"hadamard", "metrics"},
    "regression_demo": COMMON | {"hadamard", "metrics", "lab.regression"},
}
# What other code imports, of which libraries.
LIBRARIES = {"hadamard": {"torch"}, "metrics": {"torch"}}


def name_module(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {name_module(path): path for path in (*ROOT.glob("*.py"), *ROOT.glob("lab/**/*.py"))}


def imports_of(module):
    """Every module that it imports, by any statement in it: lab.common.cli, torch."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


def part_of(module):
    return ".".join(module.split(".")[:2])


def test_every_part_imports_only_what_it_may():
    for module in sorted(MODULES.keys() - {"lab"}):
        part = part_of(module)
        for imported in imports_of(module) & MODULES.keys():
            allowed = MAY_IMPORT[part] | {part}
            assert part_of(imported) in allowed, f"{module} imports {imported}"


def test_nothing_imports_in_a_circle():
    graph = {module: imports_of(module) & MODULES.keys() - {module} for module in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert len(order) == len(MODULES)


@pytest.mark.parametrize("module", LIBRARIES)
def test_what_others_import_needs_little(module):
    libraries = {name.split(".")[0] for name in imports_of(module)} - sys.stdlib_module_names
    assert libraries <= LIBRARIES[module]


def test_importing_does_nothing_but_define(tmp_path):
    names = sorted(MODULES.keys() - {"lab.sweep.slurm"})  # which needs submitit
    code = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
