"""A report as a user makes it: what it writes, what it refuses, and what the page holds."""

import base64
import contextlib
import csv
import html
import html.parser
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import ROOT, TIMEOUT
from PIL import Image

import lab.report.__main__ as report
from lab.common.cli import UsageError
from lab.report.__main__ import Args, main
from lab.report.headers import HEADERS
from lab.report.inputs import read_all
from report.planted import ENDS, make_measured, make_run, make_runs


def make_report(*runs, out="report", figures=False):
    """Make a report, without figures unless they are asked for: drawing takes most of the time."""
    assert main(Args(runs, out=out, figures=figures)) == 0


class Page(html.parser.HTMLParser):
    """Texts by tag, images, and what the page loads from elsewhere."""

    def __init__(self, path):
        super().__init__()
        self.images, self.links, self.text, self.anchors, self.roles = [], [], [], set(), {}
        self.source = path.read_text()
        self.feed(self.source)
        self.close()
        self.words = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.roles.setdefault(tag, set()).add(attributes.get("role"))
        if "id" in attributes:
            self.anchors.add(attributes["id"])
        if tag == "img":
            self.images.append(attributes["src"])
            assert attributes["alt"]
        if tag == "a":
            self.links.append(attributes["href"])
        assert tag not in ("script", "link", "iframe")

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_holds_all_and_needs_nothing_else(tmp_path, monkeypatch, capsys):
    """Two algorithms, a game without a human score, one that a variant lacks, an unfinished run."""
    monkeypatch.chdir(tmp_path)
    dead = {"relu": (0.6,), "tanh-hr": (0.2, 0.3, 0.4)}
    scores = {"relu": 20.0, "tanh-hr": 30.0}
    make_runs(tmp_path / "runs", "dqn", scores, games=("Breakout", "Adventure"), dead=dead)
    make_runs(tmp_path / "runs", "pqn", {"tanh": 5.0}, games=("Breakout",), seeds=1)
    relu = {"algorithm": "dqn", "variant": "relu"}
    make_run(tmp_path / "runs" / "half", last=400, flags={"seed": 9}, **relu)
    make_run(tmp_path / "runs" / "pong", game="Pong", flags={"env_id": "Pong"}, **relu)
    make_report("runs", figures=True)
    told = "15 runs, of which 14 count (complete, with a score): report/index.html\n"
    told += "not counted: half, not complete, 900 of 1,000 agent steps\n"
    assert told in capsys.readouterr().out
    out = tmp_path / "report"
    page = Page(out / "index.html")
    for told in (
        "15 runs, of which 14 count",
        "No complete run with a score of tanh-hr in Pong. Numbers over games are of relu, tanh-hr",
        "No human score is known for Adventure.",
        "no: not complete",
        "half",
        "Tanh (HR) scores higher than ReLU",
    ):
        assert told in page.words, told
    assert 'data-column="verdict"' in page.source
    # A phone shows no table any more, so these would be lost if they were not told.
    roles = {"table": "table", "thead": "rowgroup", "tbody": "rowgroup"}
    roles |= {"tr": "row", "th": "columnheader", "td": "cell"}
    assert {tag: page.roles[tag] for tag in roles} == {tag: {role} for tag, role in roles.items()}
    assert len(page.images) >= 7
    for source in page.images:
        assert source.startswith("data:image/svg+xml;base64,")
        ET.fromstring(base64.b64decode(source.partition(",")[2]))
    assert all(link.startswith("#") for link in page.links)
    assert {link.removeprefix("#") for link in page.links} <= page.anchors
    assert "http" not in re.sub(r"data:[^\"]*", "", page.source)
    for name in ("curves", "representation", "prediction", "profiles"):
        with Image.open(out / f"dqn_{name}.png") as image:
            assert image.size[0] > 300
        ET.parse(out / f"dqn_{name}.svg")
        assert (out / f"dqn_{name}.pdf").read_bytes().startswith(b"%PDF")
    with (out / "dqn_games.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["variant"] == "relu")
    assert float(row["dead, %"]) == pytest.approx(60.1)
    assert float(row["score low"]) < float(row["score"]) < float(row["score high"])
    with (out / "dqn_over_games.csv").open() as file:
        assert {row["scale"] for row in csv.DictReader(file)} == {
            "human-normalised",
            "baseline-normalised",
        }


def test_a_name_with_marks_of_html_is_text_on_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "a<b>&c", game="<i>Pong</i>")
    make_report("runs")
    page = Page(tmp_path / "report" / "index.html")
    assert "a<b>&c" in page.words
    assert not {"b", "i"} & page.roles.keys()


NAMES = (r"$\frac{x$", "=1+1", "-x", "a\x1b[2J\u202e", "$", r"\$", "x" * 200, "_x", "a\nb", "'=1")


def test_names_are_text_wherever_they_are_shown(tmp_path, monkeypatch, capsys):
    """No formula of a figure or of a spreadsheet, no command to a terminal, nothing of HTML."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(NAMES):
        folder = tmp_path / "runs" / (name.replace("\n", "") if i % 2 else f"{name} {i}")
        more = {"game": name, "variant": name, "processor": name, "git_commit": name}
        make_run(folder, started=name, flags={"seed": i, "init": name}, **more)
    os.rename(folder, os.path.join(b"runs", b"\xff\xfe"))
    make_report("runs", figures=True)
    make_report("report", out="again")
    told = capsys.readouterr().out
    assert all(character.isprintable() or character in "\n\t" for character in told)
    one, two = (tmp_path / name / "runs.csv" for name in ("report", "again"))
    assert one.read_bytes() == two.read_bytes()
    for path in (tmp_path / "report").glob("*.csv"):
        with path.open(newline="") as file:
            for cell in itertools.chain.from_iterable(csv.reader(file)):
                assert cell[:1] not in tuple("=+-@\t\r") or float(cell) <= 0, (path, cell)
    for path in (tmp_path / "report").glob("*.svg"):
        ET.parse(path)
    words = Page(tmp_path / "report" / "index.html").source
    assert r"$\frac{x$" in words
    assert "\x1b" not in words


def test_a_report_again_from_its_own_tables_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dead = {"relu": (0.6,), "tanh-hr": (0.2, 0.3, 0.4)}
    make_runs(tmp_path / "runs", "ppo", {"relu": 2.0, "tanh-hr": 1.0}, dead=dead)
    make_report("runs", out="one", figures=True)
    make_report("one", out="two", figures=True)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in names:
        if not name.endswith(".png"):
            assert (tmp_path / "one" / name).read_bytes() == (
                tmp_path / "two" / name
            ).read_bytes(), name


def test_a_single_run_has_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "only", [(100, 2.0)])
    make_report("runs/only")
    assert "1 run, of which 1 count" in Page(tmp_path / "report" / "index.html").words


def test_runs_without_any_game_that_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "none", [])
    for i in range(6):
        make_run(tmp_path / "runs" / f"other{i}", [], flags={"seed": 10 + i})
    make_report("runs")
    *named, more = re.findall("not counted: .*", capsys.readouterr().out)
    assert named[0] == "not counted: none, no score, 1,000 of 1,000 agent steps"
    assert (len(named), more) == (5, "not counted: 2 more runs, on the page")
    words = Page(tmp_path / "report" / "index.html").words
    assert "7 runs, of which 0 count" in words
    assert "none 1,000 of 1,000 no: no score" in words


def test_folders_of_one_name_keep_apart_also_from_a_name_like_theirs(tmp_path, monkeypatch):
    """A report of them can be made again from its tables, and in its own place."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a/run", "b/run", "b/run-2"), start=1):
        make_run(tmp_path / name, flags={"seed": seed})
    make_report("a", "b")
    names = [run.name for run in read_all(("report",))[0]]
    assert sorted(names) == ["run", "run-2", "run-3"]
    make_report("report")
    assert [run.name for run in read_all(("report",))[0]] == names


def test_a_report_keeps_the_further_copy_of_a_run_that_is_not_complete(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "half", [(100, 1.0)], last=800)
    make_report("runs")
    shutil.rmtree(tmp_path / "runs")
    make_run(tmp_path / "runs" / "half", [(100, 1.0)], last=100)
    with pytest.raises(UsageError, match="not among those named, or not as far there"):
        make_report("runs")


def test_a_run_that_was_killed_and_resumed_may_have_gone_back_a_little(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sessions = [{"step": 300}, {"step": 600}]
    for last, resumed in ((800, sessions[:1]), (700, sessions)):
        make_run(tmp_path / "runs" / "half", [(100, 1.0)], last=last, resumed=resumed)
        make_report("runs")
        assert read_all(("report",))[0][0].last_step == last
        shutil.rmtree(tmp_path / "runs")


def test_a_broken_run_is_named_and_the_others_count(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "good")
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "config.json").write_text("{")
    make_report("runs")
    assert "runs/bad/config.json is damaged" in capsys.readouterr().out
    assert "runs/bad/config.json is damaged" in (tmp_path / "report" / "index.html").read_text()


def test_two_folders_of_one_name_are_two_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a" / "run", flags={"seed": 1})
    make_run(tmp_path / "b" / "run", flags={"seed": 2})
    make_report("a", "b", out="one")
    make_report("one", out="two")
    one, two = (tmp_path / name / "runs.csv" for name in ("one", "two"))
    assert one.read_text() == two.read_text()
    assert one.read_text().count("\n") == 3


def test_a_report_is_not_written_among_runs(tmp_path, monkeypatch):
    make_run(tmp_path / "runs" / "one")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--out runs is not empty and holds no report: name a new"):
        main(Args(("runs",), out="runs"))
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_event_files_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = make_run(tmp_path / "runs" / "bad")
    (path,) = folder.glob("events*")
    whole = path.read_bytes()
    for content, told in (
        (whole[:-20], "is damaged, .* after agent step 900 is lost, so points .* agent step 900"),
        (whole[:-90] + b"x" + whole[-89:], "is damaged, .* from agent step 100 to 1,000 is lost"),
        (b"", "is empty, so points are missing; the last point there is at agent step 0"),
        (None, "the event file of the run's beginning is gone, so points are missing"),
    ):
        path.unlink() if content is None else path.write_bytes(content)
        make_report("runs")
        words = f"^bad: .*{told}"
        assert re.search(words, capsys.readouterr().out, re.MULTILINE)
        assert re.search(words[1:], Page(tmp_path / "report" / "index.html").words)
        shutil.rmtree(tmp_path / "report")


def test_an_event_file_that_leads_nowhere_is_told_and_the_others_count(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "good")
    spoiled = {"link": lambda path: path.symlink_to("nowhere"), "pipe": os.mkfifo}
    for seed, (name, spoil) in enumerate(spoiled.items(), start=2):
        (path,) = make_run(tmp_path / "runs" / name, flags={"seed": seed}).glob("events*")
        path.unlink()
        spoil(path)
    make_report("runs")
    told = capsys.readouterr().out
    assert "3 runs, of which 1 count" in told
    for name in spoiled:
        assert re.search(f"{name}: .* cannot be read .*so points are missing", told)


def test_a_run_that_may_not_be_read_is_told_and_the_others_count(capsys):
    with tempfile.TemporaryDirectory() as name, as_user_without_rights(name):
        runs = Path(name) / "runs"
        make_run(runs / "good")
        make_run(runs / "secret", flags={"seed": 2}).chmod(0)
        make_report(str(runs), out=f"{name}/report")
        told = capsys.readouterr().out
        assert "1 run, of which 1 count" in told
        assert re.search("secret is .*Permission denied", told)
        with pytest.raises(UsageError, match=r"secret is .*Permission denied"):
            make_report(str(runs / "secret"), out=f"{name}/other")


@contextlib.contextmanager
def as_user_without_rights(folder):
    """Act as a user who owns the folder but, unlike root, may not read everything."""
    root, nobody = os.geteuid(), 65534
    os.chown(folder, nobody if root == 0 else -1, -1)
    os.seteuid(nobody if root == 0 else root)
    try:
        yield
    finally:
        os.seteuid(root)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no runs: name their folders, such as runs"),
        (["nowhere"], "nowhere: no run folder there"),
        (["/", "--out", "/dev/null/x"], "--out /dev/null/x"),
        (["--outt", "x"], "did you mean --out"),
    ],
)
def test_bad_input_is_refused(flags, message, refused):
    refused(report, flags, message)


@pytest.mark.parametrize("content", ["", "a,b\n", None])
def test_tables_without_a_run_are_told_and_the_others_count(tmp_path, monkeypatch, capsys, content):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "one")
    make_report("runs", out="runs-report")
    empty = tmp_path / "empty"
    shutil.copytree(tmp_path / "runs-report", empty)
    header = (empty / "runs.csv").read_text().splitlines()[0] + "\n"
    (empty / "runs.csv").write_text(header if content is None else content)
    make_report("runs", "empty")
    assert "empty: its tables hold no run" in capsys.readouterr().out
    with pytest.raises(UsageError, match="none of these runs can be read: empty: its tables hold"):
        main(Args(("empty",), out="other"))


def test_a_group_tells_where_and_from_what_its_runs_were_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = {"device": "cpu", "processor": "AMD, 2 cores", "versions": {"torch": "2.13.0"}}
    first["git_commit"] = "a" * 40
    make_run(tmp_path / "one", **first)
    make_report("one", out="first")
    words = Page(tmp_path / "first" / "index.html").words
    assert "Run on AMD, 2 cores." in words
    assert "Runs of several" not in words
    resumed = [{"step": 500, "processor": "Intel, 4 cores", "git_commit": "b" * 40}]
    versions = {"torch": "2.14.0"}
    make_run(tmp_path / "two", **first | {"resumed": resumed, "versions": versions, "game": "Pong"})
    make_report("one", "two")
    words = Page(tmp_path / "report" / "index.html").words
    assert "Runs of several commits: aaaaaaaaaa, bbbbbbbbbb." in words
    assert "Run on AMD, 2 cores and Intel, 4 cores." in words
    assert "Runs of several versions of torch: 2.13.0, 2.14.0." in words


def test_a_run_that_diverged_counts_and_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = make_run(tmp_path / "runs" / "one", [(100, 7.0)], last=300)
    (folder / "diverged.json").write_text('{"step": 300}')
    for source in ("runs", "report"):
        make_report(source)
        told = capsys.readouterr().out
        assert "1 run, of which 1 count" in told
        assert "one has diverged at agent step 300: it counts with what it had" in told


def test_the_runs_in_a_report_are_not_lost_to_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_runs(tmp_path / "runs", "dqn", {"relu": 2.0}, games=("Pong",))
    make_run(tmp_path / "one", variant="tanh")
    make_report("runs", out="all")
    before = {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()}
    with pytest.raises(UsageError, match="--out all has the tables of 3 runs not among those"):
        main(Args(("one",), out="all"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()} == before
    make_report("all", "one", out="all")
    assert len(read_all(("all",))[0]) == 4


def test_a_run_that_differs_in_gamma_alone_is_not_lost_to_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for gamma in (0.9, 0.99):
        make_run(tmp_path / f"gamma{gamma}", flags={"gamma": gamma})
    make_report("gamma0.9")
    with pytest.raises(UsageError, match=r"the tables of 1 run .*such as gamma0.9\)"):
        main(Args(("gamma0.99",)))
    make_report("gamma0.9")


@pytest.mark.parametrize("others", [(), ("more",)])
def test_tables_that_cannot_be_read_are_not_written_over(tmp_path, monkeypatch, others):
    """Named as input or not: what they still hold may be there and nowhere else."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "one")
    make_run(tmp_path / "more", flags={"seed": 2})
    make_report("one")
    table = tmp_path / "report" / "curves.csv"
    table.write_text(table.read_text()[:1000])
    before = {path: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    for named in (("one", *others), ("report", *others)):
        with pytest.raises(UsageError, match="report: its tables of runs cannot be read"):
            main(Args(named))
    assert {path: path.read_bytes() for path in (tmp_path / "report").iterdir()} == before


def test_of_groups_that_are_gone_nothing_stays(tmp_path, monkeypatch):
    """Such as one setting whose name is another when it is the only one."""
    monkeypatch.chdir(tmp_path)
    for gamma in (0.9, 0.99):
        make_run(tmp_path / "runs" / f"gamma{gamma}", flags={"gamma": gamma})
    make_report("runs/gamma0.9", figures=True)
    assert (tmp_path / "report" / "pqn_curves.png").exists()
    (tmp_path / "report" / "pqn_mine_curves.png").write_text("mine")
    make_report("runs")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert "pqn-a_games.csv" in names
    assert [name for name in names if name.startswith("pqn_")] == ["pqn_mine_curves.png"]


def test_a_complete_run_is_not_lost_to_one_cut_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_run(tmp_path / "one")
    make_report("one")
    events = next(folder.glob("events*"))
    events.write_bytes(events.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"tables of 1 run .* not as far there \(such as one\)"):
        main(Args(("one",)))
    make_report("one", "report")


def test_without_figures_those_of_an_earlier_report_are_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "one")
    make_report("one", figures=True)
    tables = [
        path.name for kind in ("csv", "tex") for path in (tmp_path / "report").glob(f"*.{kind}")
    ]
    make_report("one")
    names = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert names == sorted([*tables, "index.html"])
    assert Page(tmp_path / "report" / "index.html").images == []


@pytest.mark.parametrize("kind", ["file", "runs.csv alone", "hidden"])
def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "one")
    (tmp_path / "mine").mkdir()
    name = {"file": "notes.txt", "runs.csv alone": "runs.csv", "hidden": ".keep"}[kind]
    (tmp_path / "mine" / name).write_text("mine")
    with pytest.raises(UsageError, match="--out mine is not empty and holds no report"):
        main(Args(("one",), out="mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [name]
    (tmp_path / "empty").mkdir()
    make_report("one", out="empty")


def test_a_report_grows_in_its_own_place_and_keeps_what_is_not_its_own(tmp_path, monkeypatch):
    """As `make evidence` does, with and without further runs."""
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        make_run(tmp_path / f"run{seed}", flags={"seed": seed})
    make_report("run1")
    (tmp_path / "report" / "by hand.png").write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    make_report("report")
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == before
    make_report("report", "run2")
    assert [run.name for run in read_all(("report",))[0]] == ["run1", "run2"]
    assert (tmp_path / "report" / "by hand.png").read_text() == "mine"


@pytest.mark.parametrize("name", ["first", "baseline"])
def test_a_variant_to_compare_with_is_there_or_missed(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "one", variant="tanh")
    with pytest.raises(
        UsageError, match=f"--{name} selu: no run of it that counts; there are tanh"
    ):
        main(Args(("one",), **{name: "selu"}))
    assert not (tmp_path / "report").exists()
    make_report("one")
    assert f"no run of {getattr(Args, name)} (--{name})" in capsys.readouterr().out


def test_a_report_needs_no_torch():
    modules = "lab.report.__main__, lab.report.curve"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=TIMEOUT).returncode == 0


def test_tables_in_latex_are_those_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_runs(tmp_path / "runs", "pqn", {"tanh": 5.0, "a_b": 7.0}, games=("Pong",))
    make_report("runs")
    text = (tmp_path / "report" / "pqn_games.tex").read_text()
    lines = text.splitlines()
    assert lines[:2] == [r"\begin{tabular}{lllll}", r"\toprule"]
    assert lines[2] == r"game & variant & seeds & score & mean score over the run \\"
    assert lines[4].startswith(r"Pong & tanh & 3 & 5.10 (4.85 to 5.35) & ")
    assert lines[5].startswith(r"Pong & a\_b & 3 & ")
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]


def test_settings_are_told_once_and_called_by_letters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    long = "word_" * 40
    for gamma, variant in itertools.product((0.9, 0.99), ("tanh", "tanh-hr")):
        for seed in range(3):
            flags = {"gamma": gamma, "init": long, "seed": seed}
            if gamma == 0.99:
                flags["init"] = "torch"
            name = f"{variant}{gamma}{seed}"
            make_run(tmp_path / "runs" / name, variant=variant, flags=flags)
    make_report("runs")
    page = Page(tmp_path / "report" / "index.html")
    assert f"PQN A gamma 0.9, init {long} PQN B gamma 0.99, init torch" in page.words
    # There, and among the flags that all of its runs share.
    assert page.words.count(f"init {long}") == 2
    with (tmp_path / "report" / "claims.csv").open() as file:
        named = {row["of"] for row in csv.DictReader(file)}
    assert f"PQN A: gamma 0.9, init {long}" in named
    # In words that a screen of any width can break.
    assert f'<td role=cell class="long" data-column="flags">gamma 0.9, init {long}</td>' in (
        page.source
    )


def test_scores_come_first_then_claims_and_those_without_a_number_are_folded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_runs(tmp_path / "runs", "pqn", {"tanh": 5.0, "tanh-hr": 9.0})
    make_report("runs", figures=True)
    source = Page(tmp_path / "report" / "index.html").source
    order = [
        "<img ",
        'data-column="score"',
        'id="claims"',
        "<details>",
        'id="pqn-more"',
        'id="runs"',
    ]
    assert [source.index(mark) for mark in order] == sorted(source.index(mark) for mark in order)
    measured, _, folded = source.partition("<details>")
    assert "Tanh (HR) scores higher than Tanh" in measured
    assert "SELU is worse than Tanh (HR)" not in measured
    assert "SELU is worse than Tanh (HR)" in folded


LAYERS = ("", "branch_0/", "branch_1/", "conv_1/", "conv_2/", "conv_3/")
EVERY_MEASURE = {
    **{f"representation/{layer}{of}": 0.2 for layer in LAYERS for of in HEADERS},
    **{f"representation/{layer}weight_norm": 12345.6 for layer in LAYERS},
    **{f"churn/{of}": 0.2 for of in ("total", "encoder", "head")},
}


def test_every_measure_is_on_the_page_and_in_tables_made_again_from_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_measured(tmp_path / "runs", {("tanh-hr", "Pong"): EVERY_MEASURE})
    older = {"representation/dead_kde": [(step, 0.5) for step in ENDS]}
    make_run(tmp_path / "runs" / "older", variant="tanh", game="Pong", measures=older)
    make_report("runs", out="one")
    make_report("one", out="two")
    page = Page(tmp_path / "one" / "index.html")
    assert page.source == (tmp_path / "two" / "index.html").read_text()
    shown, _, folded = page.source.partition("<summary>All measures")
    for header in (
        *HEADERS.values(),
        "churn, %",
        "churn by the encoder, %",
        "churn by the head, %",
    ):
        assert f'data-column="{header}"' in shown or f">{header}<" in folded, header
    for layer in LAYERS[1:]:
        assert f'data-column="{layer[:-1].replace("_", " ")}"' in folded
    # Of three seeds that are 1, 1.001 and 1.002 times 0.2; none of the older run.
    with (tmp_path / "two" / "pqn_representation.csv").open() as file:
        tanh, ours = csv.DictReader(file)
    assert (tanh["variant"], tanh["churn, %"]) == ("tanh", "nan")
    assert float(ours["churn, %"]) == pytest.approx(20.02)
    with (tmp_path / "two" / "pqn_measures.csv").open() as file:
        rows = {(row["variant"], row["measure"]): row for row in csv.DictReader(file)}
    assert float(rows["tanh-hr", "weight norm"]["conv 3"]) == pytest.approx(12357.9)
    assert rows["tanh", "dead, %"]["z"] == "50"
    assert {row["conv 3"] for (of, _), row in rows.items() if of == "tanh"} == {"nan"}
    for kind in ("csv", "tex"):
        assert (tmp_path / "one" / f"pqn_measures.{kind}").exists()


@pytest.mark.parametrize(
    "tag",
    [
        *("churn/total", "churn/encoder", "churn/head"),
        *("representation/dead_kde", "representation/feature_norm"),
        *("representation/branch_0/saturated", "representation/conv_1/dead_kde"),
        *("q_contribution/dead", "losses/td_loss"),
    ],
)
def test_a_run_with_one_measure_alone_has_a_page(tmp_path, monkeypatch, tag):
    """From the run and again from its tables; no table of it is empty."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "one", measures={tag: [(step, 0.5) for step in ENDS]})
    make_report("one", out="first")
    make_report("first", out="second")
    source = Page(tmp_path / "first" / "index.html").source
    assert source == (tmp_path / "second" / "index.html").read_text()
    more = source.partition('id="pqn-more"')[2].partition('id="runs"')[0]
    assert "None." not in more
    assert ("All measures" in more) == (tmp_path / "first" / "pqn_measures.csv").exists()
    assert ('data-column="churn' in more) == tag.startswith("churn/")


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
# Written into the title of the page around it: what reaches beyond the page, and tables that do not
# fit into it.
MEASURE = """<script>addEventListener("load", () => {
  const width = document.documentElement.clientWidth, out = [];
  for (const e of document.querySelectorAll("body, body *"))
    if (e.getBoundingClientRect().right > width + 1 && !e.closest("thead")) out.push(e.tagName);
  for (const e of document.querySelectorAll(".scroll"))
    if (e.scrollWidth > e.clientWidth + 1) out.push("table");
  parent.document.title = `${width}: ${out.join(" ") || "fits"}`;
})</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_reaches_beyond_the_page(tmp_path, monkeypatch, width):
    """With settings and names longer than a phone is wide, on a screen and on a phone."""
    monkeypatch.chdir(tmp_path)
    dead = {"tanh-hr": (0.2, 0.3, 0.4)}
    scores = {"tanh": 5.0, "tanh-hr": 1234567.0}
    make_runs(tmp_path / "runs", "pqn", scores, games=("MontezumaRevenge", "Pong"), dead=dead)
    long = "without_a_place_to_break_" * 8
    make_run(tmp_path / "runs" / f"a{long}"[:200], flags={"init": long, "gamma": 0.5})
    measured = {(variant, "Pong"): EVERY_MEASURE for variant in ("tanh-match", "hadamax-plain")}
    make_measured(tmp_path / "runs", measured)
    make_report("runs", figures=True)
    page = (tmp_path / "report" / "index.html").read_text().replace("</body>", MEASURE + "</body>")
    page = page.replace("<details>", "<details open>")  # what is unfolded has to fit, too
    (tmp_path / "frame.html").write_text(
        f'<title></title><iframe width={width} height=900 srcdoc="{html.escape(page)}"></iframe>'
    )
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=20000"]
    command += [f"--window-size={width + 100},1000", (tmp_path / "frame.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT).stdout
    title = re.search("<title>(.*?)</title>", shown)[1]
    assert title.endswith(": fits"), title
