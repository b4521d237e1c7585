"""The command line: what a refusal says, in whose name, and which numbers are refused."""

import inspect
import itertools
import json
import math
import re
import resource
import shlex
import subprocess
import types

import pytest
from algorithms import PLAIN, SCRIPTS, SHORT
from conftest import ENV, command_of
from hypothesis import given
from hypothesis import strategies as st

import dqn_atari
import lab.report.__main__ as report
import lab.sweep.__main__ as sweep
from lab import evaluate
from lab.common.cli import (
    UsageError,
    above,
    at_least,
    at_most,
    below,
    between,
    one_of,
    parse_count,
    require_writable,
    say,
)
from lab.report import curve
from lab.training.checkpoint import read_state
from lab.training.flags import translate_cleanrl

PATH = "x" * 10_000

REAL = st.floats(-1e6, 1e6)
ANY = st.one_of(
    st.floats(),  # NaN, both infinities and what lies beyond 1e18
    st.integers(),
    st.integers(10**18, 10**400),
    st.integers(-(10**400), -(10**18)),
    REAL,
    st.integers(-10, 10),
)
VAST = (math.nan, math.inf, -math.inf, 1e18, -1e18, 10**18, 10**400)


def refusal(check, value, *bounds):
    """What a check of the flag --some-flag says to this value; None where it accepts it."""
    try:
        check(types.SimpleNamespace(fine=bounds[0], some_flag=value), *bounds, "fine", "some_flag")
    except UsageError as error:
        return str(error)
    return None


CHECKS = {
    at_least: ("at least", lambda value, low: value >= low),
    above: ("above", lambda value, low: value > low),
    at_most: ("at most", lambda value, high: value <= high),
    below: ("below", lambda value, high: value < high),
}


@pytest.mark.parametrize("check", CHECKS)
@given(value=ANY, bound=st.one_of(REAL, st.integers(-10, 10)))
def test_one_bound_is_kept(check, value, bound):
    words, holds = CHECKS[check]
    own = types.SimpleNamespace(some_flag=value)
    expected = None
    if not abs(value) < 1e18:
        expected = f"--some-flag must be {words} {bound} and below 1e18, not {value}"
    elif not holds(value, bound):
        expected = f"--some-flag must be {words} {bound}, not {value}"
    if expected is None:
        check(own, bound, "some_flag")
        return
    with pytest.raises(UsageError) as error:
        check(own, bound, "some_flag")
    assert str(error.value) == expected


@given(value=ANY, bounds=st.tuples(REAL, REAL).map(sorted))
def test_both_bounds_are_kept_and_are_allowed_themselves(value, bounds):
    low, high = bounds
    found = refusal(between, value, low, high)
    if abs(value) < 1e18 and low <= value <= high:
        assert found is None
    else:
        assert found.startswith(f"--some-flag must be between {low} and {high}")
        assert found.endswith(f"not {value}")
    assert refusal(between, low, low, high) is None
    assert refusal(between, high, low, high) is None


@pytest.mark.parametrize("value", VAST, ids=lambda value: f"{value!s:.10}")
def test_no_number_is_as_large_as_that(value):
    """Whatever the bound, also one that the number itself would keep."""
    for check, bounds in ((at_least, (-1e300,)), (above, (-1e300,)), (between, (-1e300, 1e300))):
        with pytest.raises(UsageError, match=r"and below 1e18, not"):
            check(types.SimpleNamespace(x=value), *bounds, "x")
    for check in (at_most, below):
        with pytest.raises(UsageError, match=r"and below 1e18, not"):
            check(types.SimpleNamespace(x=value), 1e300, "x")


@given(
    value=st.one_of(st.text(max_size=8), st.floats(), st.none()),
    choices=st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, unique=True),
)
def test_a_choice_is_one_of_those_that_are_named(value, choices):
    own = types.SimpleNamespace(some_flag=value)
    if value in choices:
        one_of(own, choices, "some_flag")
        return
    with pytest.raises(UsageError) as error:
        one_of(own, choices, "some_flag")
    assert str(error.value) == (
        f"unknown --some-flag {value!r}: choose one of {', '.join(choices)}"
    )
    for choice in choices:
        one_of(types.SimpleNamespace(some_flag=choice), choices, "some_flag")


@pytest.mark.parametrize(
    ("name", "flags", "complaint"),
    [
        ("lab.sweep", ("--jobs", -1), "--jobs must be at least 0, not -1"),
        ("lab.report", ("--outt", "x"), "Unrecognized options: --outt, x (did you mean --out?)"),
        ("regression_demo.py", ("--seeds", 1), "--seeds must be between 2 and 1000, not 1"),
    ],
)
def test_a_tool_is_named_as_it_was_typed(name, flags, complaint, script):
    done = script(name, *flags, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"{name}: error: {complaint}")
    assert done.stderr.count("\n") == 1


def test_complaints_survive_a_terminal_without_unicode(script, monkeypatch):
    for name, value in (("LC_ALL", "C"), ("PYTHONIOENCODING", "ascii"), ("PYTHONUTF8", "0")):
        monkeypatch.setitem(ENV, name, value)
    done = script("dqn_atari.py", "--env-idd", "Pong", check=False)
    assert done.stderr.startswith(
        "dqn_atari.py: error: "
        "Unrecognized options: --env-idd, Pong (did you mean --env-id?); --help lists the flags"
    )


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_help_shows_every_flag_once_with_its_text(algorithm, in_process, monkeypatch):
    """In groups, and filled up to the width of the terminal, whatever breaks the source has."""
    monkeypatch.setenv("COLUMNS", "80")
    done = in_process(f"{algorithm}_atari.py", "--help")
    assert done.returncode == 0
    assert f"usage: {algorithm}_atari.py" in done.stdout
    rows = [line.rstrip("│ ") for line in done.stdout.splitlines()]
    for row, following in itertools.pairwise(rows):
        # A text goes on below only where its next word does not fit into the box.
        if following.startswith("│   ") and not re.search(r"[A-Z|]+$|--no-[a-z-]+$", row):
            assert len(row) + len(following.strip("│ ").split()[0]) + 1 > 78, row
    shown = " ".join(row.strip("│ ") for row in rows)
    source = inspect.getsource(SCRIPTS[algorithm].Args)
    for name in SCRIPTS[algorithm].Args.__dataclass_fields__:
        (text,) = re.findall(rf'^    {name}: .*\n    """((?:.|\n)*?)"""$', source, re.MULTILINE)
        flag = f"--{name.replace('_', '-')}"
        assert sum(re.match(rf"│ {flag}([ ,]|$)", row) is not None for row in rows) == 1
        assert " ".join(text.split()) in shown
    titles = re.findall(r"─ ([\w-]+) options", done.stdout)
    assert titles == ["run", "hidden-layers", "games", "learning", "measures", "machine", "files"]


def test_every_flag_of_cleanrl_is_a_flag_here_or_is_told():
    """Of its ppo_atari.py, dqn_atari.py and pqn_atari_envpool.py."""
    shared = "seed track env_id total_timesteps learning_rate num_envs gamma"
    rollouts = f"{shared} num_steps anneal_lr num_minibatches update_epochs max_grad_norm"
    theirs = {
        "ppo": f"{rollouts} gae_lambda norm_adv clip_coef clip_vloss ent_coef vf_coef target_kl",
        "dqn": f"{shared} buffer_size tau target_network_frequency batch_size start_e end_e "
        "exploration_fraction learning_starts train_frequency",
        "pqn": f"{rollouts} start_e end_e exploration_fraction q_lambda",
    }
    others = "exp_name torch_deterministic cuda wandb_project_name wandb_entity capture_video"
    for name in f"{others} save_model upload_model hf_entity".split():
        assert translate_cleanrl(f"--{name}")
    for algorithm, names in theirs.items():
        assert {*names.split()} <= SCRIPTS[algorithm].Args.__dataclass_fields__.keys()


@given(digits=st.integers(1, 9999), zeros=st.integers(0, 14), point=st.integers(0, 4))
def test_counts_may_be_written_as_powers_of_ten(digits, zeros, point):
    number = digits * 10**zeros
    whole, fraction = divmod(digits, 10**point)
    exponent = zeros + point
    assert parse_count(f"{whole}.{fraction:0{max(point, 1)}d}e{exponent}") == number
    for text in (f"{digits}e{zeros}", f"{digits}E+{zeros}", f"{number}", f"{number:_}"):
        assert parse_count(text) == number
    assert parse_count(f"-{digits}e{zeros}") == -number


@pytest.mark.parametrize("text", ["", "e6", "1e", "1.5", "1.25e1", "1e-3", "inf", "nan", "0x10"])
def test_what_is_no_whole_number_is_none(text):
    with pytest.raises(ValueError, match="is no whole number"):
        parse_count(text)


CLOSED = ("<&- >&- 2>&-", ">/dev/full 2>&1")


@pytest.mark.parametrize("streams", CLOSED)
@pytest.mark.parametrize(
    ("flags", "status"), [(("--algorithms", "ppo", "--dry-run"), 0), (("--jobs", -1), 2)]
)
def test_streams_that_are_closed_or_full_change_no_status(streams, flags, status, tmp_path):
    """By a real shell; what Python would end with is 120."""
    command = f"{shlex.join(command_of('lab.sweep', *flags))} {streams}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=ENV, capture_output=True)
    assert done.returncode == status
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", ">/dev/full 2>&1"])
def test_a_run_without_streams_is_whole(streams, tmp_path):
    """No file of the run gets the number of a stream that is closed."""
    flags = (*SHORT["ppo"], *PLAIN, "--device", "cpu")
    command = f"{shlex.join(command_of('ppo_atari.py', *flags))} {streams}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=ENV, capture_output=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "config.json").read_text())["finished"] == 64
    assert read_state(folder / "checkpoint.pt")["state"]["step"] == 64


@pytest.mark.parametrize("limit", [0, 1])
def test_where_no_file_can_grow_nothing_starts(limit, tmp_path):
    """A limit of none or 1 kB on the size of files; of none leaves no temporary folder either."""
    command = shlex.join(command_of("ppo_atari.py", *SHORT["ppo"], *PLAIN, "--device", "cpu"))
    command = f"ulimit -f {limit}; {command}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=ENV, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_no_file_can_grow_is_refused(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(UsageError, match=r"--out .*: File too large; choose a folder one can"):
            require_writable(tmp_path / "new", "--out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    require_writable(tmp_path / "new", "--out")
    assert list(tmp_path.iterdir()) == []


EVIL = "a\x1b[2J\x07\r\x9bx\u202edcba\u2028\x00\udcff"


def test_nothing_that_is_said_steers_the_terminal(capsys):
    """Line ends and tabs stay, and letters, spaces and signs of any script."""
    say(f"{EVIL}\n\té日本 \u3000👩‍🔬")
    assert capsys.readouterr().out == (
        r"a\x1b[2J\x07\r\x9bx\u202edcba\u2028\x00\udcff" + "\n\té日本 \u3000👩‍🔬\n"
    )


def test_a_complaint_is_one_line_whatever_a_file_is_called(launched, tmp_path):
    done = launched(report, [tmp_path / "a\n\x1b[31mb"])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert r"a\n\x1b[31mb: no run folder there" in done.stderr


@pytest.mark.parametrize(
    ("tool", "flags"),
    [
        (report, (PATH,)),
        (report, (PATH, "--out", PATH)),
        (curve, (PATH, "out")),
        (curve, ("run", PATH)),
        (curve, ("run", f"{PATH}/out")),
        (evaluate, (PATH,)),
        (evaluate, ("run", "--gif", f"{PATH}/x.gif")),
        (dqn_atari, ("--runs-dir", PATH)),
        (dqn_atari, ("--resume", PATH)),
        (sweep, ("--runs-dir", PATH, "--dry-run")),
    ],
)
def test_a_path_that_is_too_long_is_refused_in_one_line(tool, flags, launched):
    done = launched(tool, flags)
    assert done.returncode == 2
    assert done.stdout == ""
    assert ": error: " in done.stderr
    assert done.stderr.count("\n") == 1
