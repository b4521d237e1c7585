"""Names of folders that are unusual, and right: a run there, its resume, its report."""

import pytest
import torch
from algorithms import PLAIN, SHORT

import lab.report.__main__ as report
import lab.report.curve as curve
import ppo_atari
from lab.common.cli import named_path

NAMES = (
    *("no\u00a0break", "ideographic\u3000space", "join\u200der", "\N{COMBINING ACUTE ACCENT}"),
    *("\U0001fae8", "\U0010ffff"),  # an emoji, and a character, that Python may not know yet
    *("-x", "a|b", "50%j", "a b", "*[?]", "'\"$HOME", "~"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_can_lie_in_any_folder(name, in_process, launched, tmp_path, events):
    in_process("ppo_atari.py", *SHORT["ppo"], *PLAIN, f"--runs-dir={name}")
    (folder,) = (tmp_path / name).iterdir()
    assert torch.load(folder / "model.pt", weights_only=True)
    if not name.startswith("-"):  # as the value of another flag it would have to be begun with ./
        again = ("--resume", f"{name}/{folder.name}", "--total-timesteps", 128)
        assert "done: 128 agent steps" in in_process("ppo_atari.py", *again).stdout
    done = launched(report, ["--no-figures", f"./{name}"])
    assert done.returncode == 0, done.stderr
    text = events(folder).Tensors("hyperparameters/text_summary")[0].tensor_proto.string_val[0]
    assert {row.count("|") for row in text.decode().split("\n")} == {3}  # two columns


@pytest.mark.parametrize("name", ["bad\udcff", "a\nb", "\x1b[31m", "a\u2028b", "\x7f"])
def test_what_cannot_be_printed_is_refused(name, refused):
    refused(ppo_atari, [f"--runs-dir={name}"], "has (no UTF-8|a control character) in it: choose")


def test_a_run_is_named_by_where_one_stands(in_process, launched, tmp_path, monkeypatch):
    """--resume ., report . and the like: the folder has its own name there, too."""
    in_process("ppo_atari.py", *SHORT["ppo"], *PLAIN)
    (folder,) = (tmp_path / "runs").iterdir()
    monkeypatch.chdir(folder)
    assert named_path(".") == folder
    # The tests' own launcher would go to the folder above.
    monkeypatch.setattr(monkeypatch, "chdir", lambda path: None)
    done = in_process("ppo_atari.py", "--resume", ".", "--total-timesteps", 128)
    assert done.stdout.strip().endswith(f", {folder}")
    done = launched(report, ["--no-figures", ".", "--out", str(tmp_path / "report")])
    assert done.returncode == 0, done.stderr
    assert folder.name in (tmp_path / "report" / "runs.csv").read_text()
    assert in_process("lab.evaluate", ".", "--games", 1).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "runs"]
    assert launched(curve, [".", str(tmp_path / "curve")]).returncode in (0, 2)  # no game ended
