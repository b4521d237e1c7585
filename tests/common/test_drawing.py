"""Figures are those of matplotlib's defaults, and a user's matplotlib ends nothing."""

import pytest
from algorithms import PLAIN, SHORT
from conftest import ENV
from report.planted import make_runs

# What a user's own files may hold; LaTeX is not installed, and need not be.
RC = "text.usetex: True\nfont.size: 31\naxes.facecolor: red\nlines.linewidth: 9\nsavefig.dpi: 20\n"
RC += "backend: module://no.such.backend\nfigure.constrained_layout.use: True\n"
MEASURED = ("--total-timesteps", 1024, "--metrics-every", 512, *SHORT["ppo"][2:], *PLAIN)


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Of a notebook, with a style of its own."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "matplotlibrc").write_text(RC)
    monkeypatch.setitem(ENV, "MPLBACKEND", "module://no.such.backend")
    monkeypatch.setitem(ENV, "MPLCONFIGDIR", str(tmp_path / "own"))


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_report_does_not_depend_on_a_users_matplotlib(request, script, tmp_path):
    """Every figure, byte for byte."""
    make_runs(tmp_path / "runs", "pqn", {"tanh": 5.0, "tanh-hr": 9.0}, games=("Pong",))
    script("lab.report", "runs", "--out", "plain")
    request.getfixturevalue("hostile")
    script("lab.report", "runs", "--out", "styled")
    plain, styled = (read_files(tmp_path / name) for name in ("plain", "styled"))
    assert any(name.endswith("_curves.png") for name in plain)
    assert plain == styled


def test_pictures_of_a_run_do_not_depend_on_a_users_matplotlib(request, script, tmp_path, events):
    def read(runs_dir):
        script("ppo_atari.py", *MEASURED, "--device", "cpu", "--runs-dir", runs_dir)
        (folder,) = (tmp_path / runs_dir).iterdir()
        return [image.encoded_image_string for image in events(folder).Images("representation/kde")]

    plain = read("plain")
    request.getfixturevalue("hostile")
    assert len(plain) == 1
    assert read("styled") == plain


def test_a_run_without_any_matplotlib_goes_on(script, tmp_path, events):
    """As where its file cannot be read: one warning, and everything but the picture is there."""
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe\n")
    done = script("ppo_atari.py", *MEASURED, "--device", "cpu")
    assert done.stderr.count("warning: no picture of single neurons: matplotlib cannot be") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    found = events(folder).Tags()
    assert "representation/effective_rank" in found["scalars"]
    assert found["images"] == []
    assert (folder / "model.pt").exists()


def test_a_report_without_any_matplotlib_says_so_in_one_line(script, tmp_path):
    make_runs(tmp_path / "runs", "pqn", {"tanh": 5.0, "tanh-hr": 9.0}, games=("Pong",))
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe\n")
    done = script("lab.report", "runs", check=False)
    assert done.returncode == 2
    assert "lab.report: error: matplotlib cannot be loaded" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "report").exists()
    script("lab.report", "runs", "--no-figures")


def test_an_unwritable_home_ends_nothing(script, monkeypatch):
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.setitem(ENV, name, "/proc/no/such")
    done = script("ppo_atari.py", *MEASURED, "--device", "cpu")
    assert "done: 1,024 agent steps" in done.stdout
