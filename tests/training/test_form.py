"""Checkpoints that no run has written: the right result or one line, no hang, no code, no memory.

Their checksums are right: the form of what is in them is all that tells them from a run's own.
"""

import contextlib
import io
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from algorithms import PLAIN, SCRIPTS, SHORT, parse

from lab.common.cli import UsageError
from lab.training import replay
from lab.training.checkpoint import (
    FOOTER_BYTES,
    FORMAT,
    NEWEST,
    Checkpoints,
    Footer,
    read_footer,
    read_state,
)
from lab.training.form import check_filled, check_part
from lab.training.logger import Means
from lab.training.replay import ReplayBuffer
from lab.training.resume import load_parts

HANG = 120  # seconds: a whole checkpoint takes less than one
FLAGS = ("--device", "cpu", *PLAIN)


class Captured(Exception):
    """In place of training: the parts of a run are there."""


@pytest.fixture(scope="module")
def saved_runs(tmp_path_factory):
    """By algorithm: the folder of a short run, and the parts of a run that has just begun."""
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "SEGMENT", 16)  # transitions, so that there are several
        for algorithm, script in SCRIPTS.items():
            runs_dir = tmp_path_factory.mktemp(algorithm)
            args = parse(algorithm, *SHORT[algorithm], *FLAGS, "--runs-dir", runs_dir)
            captured = {}

            def keep(run, parts, captured=captured):
                captured.update(parts)
                raise Captured

            assert script.main(args) == 0
            (folder,) = runs_dir.iterdir()
            with pytest.MonkeyPatch.context() as before, contextlib.suppress(Captured):
                before.setattr(script.Run, "resume", keep)
                args = parse(algorithm, *SHORT[algorithm], *FLAGS, "--runs-dir", f"{runs_dir}-new")
                script.main(args)
            runs[algorithm] = folder, captured
        yield runs


@contextlib.contextmanager
def no_hang():
    def stop(number, frame):
        raise AssertionError(f"nothing for {HANG} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def go_on(parts):
    """What a run does first with its parts: act, learn from the memory, take a step."""
    games = parts["games"]
    with torch.no_grad():
        parts["network"](torch.from_numpy(games.obs))
    games.step(np.zeros(games.num_envs, np.int64))
    for parameter in parts["network"].parameters():
        parameter.grad = torch.zeros_like(parameter)
    parts["optimizer"].step()
    if "buffer" in parts:
        parts["buffer"].sample(64, parts["sampling"])
        parts["exploring"].random()
        parts["losses"].pop()
    else:
        parts["recent"].newest(len(parts["recent"].frames))
        torch.rand(1, generator=parts["sampling"])


def resume(folder, parts):
    """Whether the checkpoint in the folder is taken; what is said, if it is refused."""
    problem = ""
    with no_hang():
        try:
            load_parts(Checkpoints(folder), parts)
        except UsageError as error:
            problem = str(error)
        else:
            go_on(parts)
    assert "\n" not in problem
    assert len(problem) < 1000
    return problem


def write(folder, content: bytes, step: int):
    footer = bytes(Footer(FORMAT, step, zlib.crc32(content)))
    (folder / NEWEST).write_bytes(content + footer)


def write_nest(folder, nest, step: int):
    content = io.BytesIO()
    torch.save(nest, content)
    write(folder, content.getvalue(), step)


def list_places(nest, place=()):
    """Every place in a nest of dicts and lists: the keys that lead to it."""
    items = nest.items() if isinstance(nest, dict) else enumerate(nest)
    for key, item in items:
        yield (*place, key)
        if isinstance(item, dict | list):
            yield from list_places(item, (*place, key))


def make_deep(levels=40):
    """A nest with more leaves than could ever be looked at, in a few bytes."""
    nest = []
    for _ in range(levels):
        nest = [nest, nest]
    return nest


ODD = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        2**70,
        -(2**70),
        0.5,
        -1.0,
        math.nan,
        math.inf,
        make_deep(),
    ),
    *("", "x", "../../x", "\x1b[2J\n", "x" * 5000, [], {}, [None], {0: 0}, {"x": []}),
    *(torch.zeros(()), torch.zeros(3), torch.zeros(1).expand(10**12), torch.zeros(0)),
    *(torch.full((2,), math.nan), torch.zeros(2, dtype=torch.int64), torch.ones(2) * 1j),
)


def alter(old, rng):
    """Return a value near another: of another shape, dtype, sign or size."""
    if isinstance(old, torch.Tensor):
        changed = old.clone().contiguous()
        if old.numel():
            number = rng.choice([0, 1, 7, 200] if old.dtype == torch.uint8 else [-1, 1e9, math.nan])
            with contextlib.suppress(ValueError, RuntimeError):  # no NaN in whole numbers
                changed.view(-1)[rng.randrange(old.numel())] = number
        others = [old[None], old.double(), old.int(), old.flatten()[:-1], old.bool()]
        return rng.choice([changed, changed, changed, *others])
    if isinstance(old, bool | None):
        return not old
    if isinstance(old, int):
        return rng.choice([old + 1, old - 1, -old, float(old), str(old)])
    if isinstance(old, float):
        return rng.choice([old + 1, -old, int(old), str(old)])
    if isinstance(old, str):
        return rng.choice([f"{old}x", f"../{old}", old[:-1], old.encode()])
    if isinstance(old, list):
        return rng.choice([[*old, old], old[:-1], old[::-1]])
    return rng.choice([dict(list(old.items())[:-1]), old | {"more": 1}, old | {-1: 1}, list(old)])


def mutate_nest(folder, step, rng):
    """Put an odd value somewhere in a checkpoint, or take one away."""
    nest = read_state(folder / NEWEST)
    # As often in each of its parts, however many places that has.
    by_part = {}
    for place in list_places(nest):
        by_part.setdefault(place[:2], []).append(place)
    *owners, key = rng.choice(by_part[rng.choice(sorted(by_part, key=str))])
    owner = nest
    for name in owners:
        owner = owner[name]
    if rng.random() < 0.1:
        owner.pop(key)
    else:
        owner[key] = rng.choice(ODD) if rng.random() < 0.5 else alter(owner[key], rng)
    write_nest(folder, nest, step)


def mutate_bytes(folder, step, rng):
    """Flip bits, cut off or put something in, in the pickle or anywhere, with a right checksum."""
    content = bytearray((folder / NEWEST).read_bytes()[:-FOOTER_BYTES])
    pickled = content.find(b"data.pkl") + 8
    for _ in range(rng.choice([1, 1, 3, 30])):
        high = pickled + 9000 if rng.random() < 0.7 else len(content)
        at = rng.randrange(pickled if high != len(content) else 0, high)
        kind = rng.random()
        if kind < 0.8:
            content[at] ^= 1 << rng.randrange(8)
        elif kind < 0.9:
            content[at : at + rng.randrange(9)] = b""
        else:
            content[at:at] = rng.randbytes(rng.randrange(9))
    write(folder, bytes(content), step)


def mutate_pickle(folder, step, rng):
    """Change the pickle in the archive and nothing else: its own checksums are right, too."""
    content = (folder / NEWEST).read_bytes()[:-FOOTER_BYTES]
    archive, changed = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    with zipfile.ZipFile(changed, "w", rng.choice([zipfile.ZIP_STORED] * 9 + [8])) as new:
        for entry in archive.infolist():
            data = bytearray(archive.read(entry))
            if entry.filename.endswith("data.pkl"):
                for _ in range(rng.choice([1, 1, 2, 5])):
                    data[rng.randrange(len(data))] = rng.choice([0, 1, 255, rng.randrange(256)])
            new.writestr(entry.filename, bytes(data))
    write(folder, changed.getvalue(), step)


def mutate_segment(folder, step, rng):
    """Change what is in the replay memory, or which files it is read from."""
    nest = read_state(folder / NEWEST)
    if not nest["segments"]:
        return mutate_nest(folder, step, rng)
    index = rng.choice(sorted(nest["segments"]))
    path = folder / "replay" / nest["segments"][index][0]
    data = bytearray(path.read_bytes())
    rows = len(data) // (84 * 84 + 8)
    for _ in range(rng.choice([1, 10, 100])):
        at = rng.randrange(84 * 84 * rows if rng.random() < 0.9 else 0, len(data))
        data[at] = rng.choice([0, 1, 2, 4, 127, 255])
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)) :]
    path.write_bytes(data)
    nest["segments"][index][1] = zlib.crc32(data)
    return write_nest(folder, nest, step)


@pytest.mark.parametrize(
    ("mutations", "seed"), [(60, 1), pytest.param(500, 0, marks=pytest.mark.long)]
)
def test_a_mutation_is_taken_or_refused_in_one_line(mutations, seed, saved_runs, tmp_path):
    """Where it is taken, the run can go on; else all is as it was."""
    rng, refused = random.Random(seed), 0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ways = (mutate_nest, mutate_nest, mutate_bytes, mutate_pickle, mutate_segment)
    for number in range(mutations):
        # Most of DQN, which has most to save; the others have another optimizer and observations.
        folder, parts = saved_runs[rng.choice([*["dqn"] * 8, "ppo", "pqn"])]
        crafted = tmp_path / "run"
        shutil.copytree(folder, crafted)
        (crafted / "previous.pt").unlink()
        way = ways[number % len(ways)]
        way(crafted, read_footer(folder / NEWEST).step, rng)
        torch.manual_seed(0)
        refused += bool(resume(crafted, parts))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
        shutil.rmtree(crafted)
    assert 0.5 * mutations < refused < 0.99 * mutations
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < 500_000  # kB


def at(nest, *place):
    for key in place:
        nest = nest[key]
    return nest


def put(value, *place):
    """A change that puts a value, or what a function makes of the old one, to a place."""

    def change(nest):
        owner = at(nest, *place[:-1])
        old = owner.get(place[-1]) if isinstance(owner, dict) else owner[place[-1]]
        owner[place[-1]] = value(old) if callable(value) else value

    return change


def one_at(index, number):
    """A change of one number of a tensor."""

    def change(old):
        new = old.clone()
        new.view(-1)[index] = number
        return new

    return change


NETWORK, GAMES, RUN = ("state", "network"), ("state", "games"), ("state", "run")
GROUP = ("state", "optimizer", "param_groups", 0)
SEGMENT = ("segments", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(one_at(5, 4), *GAMES, "actions"), "games.actions must lie between 0 and 3"),
        (put(one_at(5, 255), *GAMES, "actions"), "games.actions must lie between 0 and 3"),
        (put(lambda old: old[:-1], *GAMES, "actions"), r"games.actions must be uint8 \(160,\)"),
        (put(one_at(0, -1), *GAMES, "log_lengths"), "games.log_lengths must lie between 0"),
        (put(one_at(0, 10**15), *GAMES, "log_lengths"), "games.log_lengths must lie between 0"),
        (put(one_at(0, -1), *GAMES, "seeds"), "games.seeds must lie between 0"),
        (put(-1, *GAMES, "seed"), "games.seed must lie between 0"),
        (put(one_at(1, math.nan), *GAMES, "returns"), "games.returns has NaN or inf"),
        (put(one_at(9, 3), *GAMES, "obs"), "the games did not come back"),
        (put("pong", *GAMES, "game"), "game was 'pong' where the games were saved"),
        (put(3, *GAMES, "num_envs"), "num_envs was 3 where the games were saved"),
        (put(one_at(0, 1), *GAMES, "game_start"), "the games did not come back"),
        (put(one_at(3, math.inf), *NETWORK, "latent.weight"), "network.latent.weight has NaN"),
        (put(lambda old: old.T, *NETWORK, "latent.weight"), r"must be float32 \(32, 3136\), not"),
        (put(lambda old: old.double(), *NETWORK, "head.bias"), "must be float32 .*, not float64"),
        (put([1.0], *NETWORK, "head.bias"), r"must be float32 \(4,\), not list"),
        (lambda nest: at(nest, *NETWORK).pop("head.bias"), "network lacks head.bias"),
        (put(torch.zeros(1), *NETWORK, "more"), "network has more than"),
        (put("0.1", *GROUP, "lr"), "optimizer.lr must be a number of at least 0"),
        (put([0.9], *GROUP, "betas"), r"optimizer.betas must be \[0.9, 0.999\]"),
        (put(True, *GROUP, "maximize"), "optimizer.maximize must be False"),
        (lambda nest: at(nest, *GROUP[:-2]).pop("state"), "optimizer lacks state"),
        (lambda nest: at(nest, *GROUP[:-2], "state").pop(3), "must be of all 10 parameters"),
        (put(lambda old: -old - 1, *GROUP[:-2], "state", 0, "exp_avg_sq"), "must not be below 0"),
        (put("MT19937", "state", "exploring", "bit_generator"), "exploring must be a PCG64"),
        (put(2**128, "state", "exploring", "state", "inc"), "exploring.inc must lie between"),
        (put(lambda old: old[:-1], "state", "sampling"), r"sampling must be uint8 \(5056,\)"),
        (put(lambda old: old * 0, "state", "sampling"), "(?i)invalid mt19937 state|sampling"),
        (put(81, "state", "buffer", "size"), "buffer.size must be its position while it fills"),
        (put(304, "state", "buffer", "position"), "buffer.position must lie between 0 and 303"),
        (put({608: torch.zeros(84, 84)}, "state", "buffer", "final_frames"), "between 0 and 607"),
        (put({"x/../y": []}, "state", "losses"), "losses must have tags of losses"),
        (put(1, "state", "step"), "step must be 160, as its last line says"),
        (put(160.0, "state", "step"), "step must be a whole number, not float"),
        (put([1.0] * 101, *RUN, "returns"), "run.returns must be up to 100 numbers"),
        (put("a\x1b[2J", *RUN, "layer"), "run.layer must be a short text"),
        (put(-1.0, *RUN, "elapsed"), "run.elapsed must be a number of seconds"),
        (put({"../../precious": 0}, *RUN, "events"), "run.events must have names of event files"),
        (put({"events.out.tfevents.1/../../x.1.1": 0}, *RUN, "events"), "must have names of event"),
        (put("../../precious", *SEGMENT, 0), "a segment has no name that a run gives"),
        (put("/etc/passwd", *SEGMENT, 0), "a segment has no name that a run gives"),
        (put(["00000-1.bin"], *SEGMENT), "a segment has no name that a run gives"),
        (put(-1, *SEGMENT, 1), "checksum of a segment must lie between"),
        (lambda nest: nest["segments"].pop(2), "segment 2 of the memory is missing"),
        (put(["00000-1.bin", 0], "segments", 10**9), "of a replay memory that has none"),
        (put(["00000-1.bin", 0], "segments", -1), "number of a segment must lie between"),
        (put("../..", "mark"), "its mark is none"),
        (put(make_deep(), "flags", "gamma"), "its flags are not texts and numbers"),
        (put([], "state"), "state must be a dict, not list"),
        (put(-1, "number"), "number must lie between 0"),
    ],
)
def test_what_no_run_has_written_is_named(change, message, saved_runs, tmp_path):
    """And the files of the run stay as they are, and those that are named elsewhere."""
    folder, parts = saved_runs["dqn"]
    crafted, precious = tmp_path / "a" / "run", tmp_path / "precious"
    shutil.copytree(folder, crafted)
    precious.write_text("mine")
    nest = read_state(crafted / NEWEST)
    change(nest)
    write_nest(crafted, nest, 160)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    problem = resume(crafted, parts)
    assert re.search(message, problem), problem
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("actions", 4, "the memory has actions beyond the 4 of the game"),
        ("rewards", math.nan, "the memory has rewards beyond 1"),
        ("rewards", 1e6, "the memory has rewards beyond 1"),
        ("terminations", 2, "ends of games that are neither true nor false"),
        ("truncated", 255, "ends of games that are neither true nor false"),
        ("truncated", 1, "the memory lacks the last frame of a truncated game"),
        ("history", 4, "the memory has stacks of frames that are not there"),
        ("history", 255, "the memory has stacks of frames that are not there"),
    ],
)
def test_what_no_game_has_played_is_named(field, value, message, saved_runs, tmp_path):
    """In the segments of the replay memory, whose checksums are right, too."""
    folder, parts = saved_runs["dqn"]
    crafted, memory = tmp_path / "run", ReplayBuffer(600, 2)
    shutil.copytree(folder, crafted)
    nest = read_state(crafted / NEWEST)
    Checkpoints(crafted).load(memory)
    array = getattr(memory, field)
    (array.view(np.uint8) if array.dtype == bool else array)[17, 1] = value
    for index, segment in nest["segments"].items():
        data = b"".join(part.numpy().tobytes() for part in memory.segment(index))
        (crafted / "replay" / segment[0]).write_bytes(data)
        segment[1] = zlib.crc32(data)
    write_nest(crafted, nest, 160)
    assert message in resume(crafted, parts)
    assert resume(folder, parts) == ""


def test_a_ring_that_has_wrapped_or_not_is_taken(tmp_path, monkeypatch):
    """Whatever its position: no memory of a run is refused."""
    monkeypatch.setattr(replay, "SEGMENT", 6)
    buffer = ReplayBuffer(20, 2)
    rng = np.random.default_rng(0)
    obs = np.zeros((2, 4, 84, 84), np.uint8)
    buffer.start(obs)
    written = {0}
    for _ in range(60):
        over = rng.random(2) < 0.3
        cut = np.array([obs[0] if one else None for one in over & (rng.random(2) < 0.5)], object)
        final = np.full(2, None, object)
        for env in range(2):
            final[env] = cut[env]
        rewards, ends = rng.choice([-1.0, 0.0, 1.0], 2), rng.random(2) < 0.5
        buffer.add(obs, rng.integers(0, 4, 2), rewards, ends, over, final)
        written |= buffer.dirty
        state = buffer.state_dict()
        check_part("buffer", buffer, state)
        check_filled(buffer, state, dict.fromkeys(written), 4)


def test_means_of_losses_are_taken():
    means = Means(torch.device("cpu"))
    means.add({"losses/td_loss": torch.tensor(1.5), "losses/q_values": torch.tensor(-2.0)})
    check_part("losses", means, means.state_dict())


class Runs:
    """Would run code when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def archive_with(pickled: bytes, compression=zipfile.ZIP_STORED, **more) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        entries = {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little"} | more
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return content.getvalue()


@pytest.mark.parametrize(
    "craft",
    [
        lambda trace: pickle.dumps(Runs(trace), protocol=2),
        lambda trace: archive_with(pickle.dumps(Runs(trace), protocol=2)),
        lambda trace: archive_with(pickle.dumps(Runs(trace), protocol=4)),
        # 10 GB of zeros, packed or made on the way; a memory of 2**31 entries; a tensor of 2**40.
        lambda trace: archive_with(pickle.dumps({"number": 1}), 8, zeros=bytes(10**8)),
        lambda trace: archive_with(b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
        lambda trace: archive_with(b"\x80\x02}r\xff\xff\xff\x7f."),
        lambda trace: archive_with(b"ctorch\nTensor\n\x8a\x05\0\0\0\0\x7f\x85R."),
        lambda trace: archive_with(b"X\xff\xff\xff\x7fabc."),
        lambda trace: archive_with(b"\x8b" + struct.pack("<i", 2**31 - 1) + b"1."),
        lambda trace: archive_with(b"(" * 10**6 + b"."),
        lambda trace: archive_with(b"]" * 10**6 + b"a" * (10**6 - 1) + b"."),
        lambda trace: b"PK\x05\x06" + bytes(18),
        lambda trace: b"",
    ],
)
def test_what_would_run_code_or_take_memory_is_refused(craft, tmp_path):
    write(tmp_path, craft(tmp_path / "ran"), 5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with no_hang(), pytest.raises(UsageError, match="it is not loaded"):
        Checkpoints(tmp_path).load()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    assert not (tmp_path / "ran").exists()
