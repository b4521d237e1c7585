"""Who may import whom: common nothing else of lab, report and regression common alone."""

import ast

import pytest
from conftest import ROOT


@pytest.mark.parametrize("part", ["common", "report", "regression"])
def test_a_part_of_lab_imports_itself_and_common_alone(part):
    for path in (ROOT / "lab" / part).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "lab":
                names = node.module if node.module != "lab" else f"lab.{node.names[0].name}"
                assert names.split(".")[1] in ("common", part), f"{path}: {names}"
            if isinstance(node, ast.Import):
                assert not [name for name in node.names if name.name.startswith("lab")], path
