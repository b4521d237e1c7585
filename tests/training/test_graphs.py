"""CUDA graphs, on the CPU by a stand-in: replays are the function; what could not be is told."""

import contextlib
import copy
import functools
import itertools
import re
import types

import numpy as np
import pytest
import torch
from algorithms import NETWORKS, SCRIPTS, SHORT, draw_acting
from interruptions import differences
from standin import StandIn
from torch import nn
from torch.utils._pytree import tree_leaves, tree_unflatten

import dqn_atari
from lab.training import graphs
from lab.training.frames import OBS_SHAPE, channels_last
from lab.training.graphs import WARM_UP, Graphed
from lab.training.radam import RAdam
from lab.training.replay import ReplayBuffer
from lab.training.run import Run
from lab.training.signals import CAN_RESUME

CPU = torch.device("cpu")
ACTIONS, BATCH = 4, 8


@pytest.fixture
def recorders(monkeypatch):
    """The stand-ins that were made, in the place of recorders on a GPU."""
    made = []

    def make(device):
        made.append(StandIn(device))
        return made[-1]

    monkeypatch.setattr(graphs, "make_recorder", make)
    return made


@functools.cache
def make_memory(device=CPU):
    """A replay memory of noise, the same on every device."""
    rng, memory = np.random.default_rng(0), ReplayBuffer(40, 2, device)
    memory.start(rng.integers(256, size=(2, *OBS_SHAPE), dtype=np.uint8))
    for _ in range(30):
        obs, ends = rng.integers(256, size=(2, *OBS_SHAPE), dtype=np.uint8), rng.random(2) < 0.2
        memory.add(obs, rng.integers(ACTIONS, size=2), rng.normal(size=2), ends, ends)
    return memory


def random_batch(algorithm, call):
    """Another minibatch at each call."""
    generator = torch.Generator().manual_seed(call)
    if algorithm == "dqn":
        return make_memory().locate(make_memory().draw(BATCH, generator))
    obs = torch.randint(256, (1, BATCH, *OBS_SHAPE), dtype=torch.uint8, generator=generator)
    obs = channels_last(obs[0])
    actions = torch.randint(ACTIONS, (BATCH,), generator=generator)
    numbers = torch.randn(4, BATCH, generator=generator)
    ends = numbers[0] > 1
    if algorithm == "ppo":
        return obs, actions, -numbers[0].abs(), numbers[1], ends, *numbers[2:], numbers[1]
    return obs, actions, numbers[1], ends, *numbers[2:]


class Learner:
    """A network with its optimizer, and `act` and `gradient_step` as the script has them."""

    def __init__(self, algorithm, optimizer=None, device=CPU, **flags):
        self.args = SCRIPTS[algorithm].Args(**({"latent_dim": 32} | flags))
        torch.manual_seed(0)
        self.network = NETWORKS[algorithm](ACTIONS, self.args)
        self.network.to(device, memory_format=torch.channels_last)
        if optimizer is None and algorithm == "pqn":
            optimizer = RAdam
        elif optimizer is None:
            optimizer = fused_adam
        self.optimizer = optimizer(self.network.parameters(), lr=1e-3)
        networks = [self.network]
        if algorithm == "dqn":
            self.target = copy.deepcopy(self.network)
            networks.append(self.target)
        given = [*networks, self.optimizer]
        if algorithm == "dqn":
            given.append(make_memory(device))
        self.choose, self.learn = SCRIPTS[algorithm].make_graphs(*given, self.args)

    def tensors(self):
        """All that updates change."""
        states = [state.values() for state in self.optimizer.state.values()]
        return [*self.network.parameters(), *itertools.chain(*states)]


def fused_adam(parameters, lr):
    return torch.optim.Adam(parameters, lr=lr, eps=1e-5, fused=True)


def fused_adamw(parameters, lr):
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.8, 0.99), weight_decay=0.1, fused=True)


def same(one, other):
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


CASES = [
    ("dqn", {}),
    ("dqn", {"precision": "bf16", "double_dqn": True}),
    ("dqn", {"apply_to": "all", "activation": "relu"}),
    ("dqn", {"optimizer": RAdam}),
    ("dqn", {"optimizer": fused_adamw}),
    ("ppo", {}),
    ("ppo", {"precision": "bf16", "clip_vloss": False, "norm_adv": False}),
    ("ppo", {"branches": 1, "layer_norm": True, "init": "orthogonal"}),
    ("ppo", {"optimizer": RAdam, "precision": "bf16"}),
    ("pqn", {}),
    ("pqn", {"precision": "bf16", "branches": 1}),
    ("pqn", {"layer_norm": False, "combine": "sum", "branches": 3}),
    ("pqn", {"optimizer": fused_adam, "apply_to": "last"}),
]


@pytest.mark.parametrize(("algorithm", "flags"), CASES)
def test_replayed_updates_are_the_updates(algorithm, flags, recorders, capfd):
    """100 of them, bit for bit, while the learning rate falls and through RAdam's first steps."""
    graphed, plain = Learner(algorithm, **flags), Learner(algorithm, **flags, cuda_graphs=False)
    batches = [random_batch(algorithm, call) for call in range(10)]
    kept = []
    for call in range(100):
        for one in (graphed, plain):
            one.optimizer.param_groups[0]["lr"] = 1e-3 * (1 - call / 100)
            if algorithm == "dqn" and call % 20 == 19:
                dqn_atari.update_target(one.target, one.network, 0.5)
        given = batches[call % 10]
        found, expected = tree_leaves(graphed.learn(*given)), tree_leaves(plain.learn(*given))
        kept.append((found, [leaf.clone() for leaf in expected]))
        assert same(graphed.tensors(), plain.tensors()), call
    for found, expected in kept:  # also long after
        assert same(found, expected)
    groups = [one.optimizer.param_groups[0] for one in (graphed, plain)]
    for group in groups:
        del group["params"]
    assert groups[0] == groups[1]
    # RAdam's epsilon is another in its first five steps, and so it is recorded once more.
    twice = isinstance(graphed.optimizer, RAdam)
    assert [recorder.recorded for recorder in recorders] == [0, 2 if twice else 1]
    assert graphed.learn.replays == (92 if twice else 97)
    assert plain.learn.replays == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_replayed_actions_are_the_actions(algorithm, precision, recorders, capfd):
    """Between updates, and below autocast, where a rollout is played: it keeps weights cast."""
    learner = Learner(algorithm, precision=precision)
    choose, act = learner.choose, learner.choose.function
    call = 0
    for rollout in range(8):
        with torch.no_grad(), learner.network.autocast("cpu"):
            for _ in range(WARM_UP + 2):
                call += 1
                given = draw_acting(algorithm, call, 5)
                assert same(tree_leaves(choose(*given)), tree_leaves(act(*given))), call
        learner.learn(*random_batch(algorithm, rollout))
    assert choose.replays == call - WARM_UP
    assert [recorder.recorded for recorder in recorders] == [1, 1]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_a_run_is_the_run_without_graphs(algorithm, in_process, recorders, monkeypatch, tmp_path):
    """The weights, the state and every curve, bit for bit, and also where it stops and goes on."""
    flags = [*SHORT[algorithm], "--latent-dim", 32, "--precision", "bf16"]
    if algorithm != "dqn":
        flags += ["--total-timesteps", 192, "--update-epochs", 4, "--anneal-lr"]
    script, folders = f"{algorithm}_atari.py", []
    for runs_dir, more in (("graphs", []), ("plain", ["--no-cuda-graphs"])):
        in_process(script, *flags, "--runs-dir", runs_dir, *more)
        folders += (tmp_path / runs_dir).iterdir()
    recorded = [1, 2 if algorithm == "pqn" else 1]
    assert [recorder.recorded for recorder in recorders] == recorded

    goes_on = Run.goes_on
    stop = 150 if algorithm == "dqn" else 128
    monkeypatch.setattr(Run, "goes_on", lambda run: run.step < stop and goes_on(run))
    stopped = in_process(script, *flags, "--runs-dir", "stopped", check=False)
    assert stopped.returncode == CAN_RESUME
    folders += (tmp_path / "stopped").iterdir()
    monkeypatch.setattr(Run, "goes_on", goes_on)
    in_process(script, "--resume", folders[-1])
    assert [recorder.recorded for recorder in recorders[2:4]] == recorded
    memory = {"buffer_size": 600, "num_envs": 2} if algorithm == "dqn" else {}
    for folder in folders[1:]:
        assert differences(folders[0], folder, **memory) == []


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_a_state_that_was_loaded_is_the_one_that_changes(algorithm, recorders):
    """Loading puts other tensors into an optimizer, and other groups."""
    learner = Learner(algorithm)
    batches = [random_batch(algorithm, call) for call in range(30)]
    for given in batches[:12]:
        learner.learn(*given)
    saved = copy.deepcopy((learner.network.state_dict(), learner.optimizer.state_dict()))
    ends = []
    for times in range(4):
        if times > 0:
            learner.network.load_state_dict(saved[0])
        for _ in range(times):  # what is loaded last can lie where the recorded state lay
            learner.optimizer.load_state_dict(copy.deepcopy(saved[1]))
        results = [tree_leaves(learner.learn(*given)) for given in batches[12:]]
        ends.append([*itertools.chain(*results), *(x.clone() for x in learner.tensors())])
    assert all(same(end, ends[0]) for end in ends[1:])
    first = 2 if algorithm == "pqn" else 1
    assert recorders[1].recorded == first + 3
    assert learner.learn.replays == len(batches) - 12 - WARM_UP  # compared as after any recording


class Wrong:
    """Functions that a graph would get wrong or that a GPU would refuse to record."""

    def __init__(self):
        self.weight = nn.Parameter(torch.ones(3))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1)
        self.number, self.beside = 0, torch.zeros(3)

    def counts(self, x):
        self.number += 1
        return x * self.number

    def has_a_number_from_outside(self, x):
        return x * self.number

    def asks_for_a_number(self, x):
        return x * x.sum().item()

    def branches(self, x):
        return x if x.sum() > 0 else -x

    def draws(self, x):
        return x + torch.rand(3)

    def draws_from_a_generator(self, x):
        return x + torch.rand(3, generator=torch.Generator().manual_seed(int(self.number)))

    def takes_from_the_host(self, x):
        return x + torch.tensor([1.0, 2.0, 3.0])

    def reads_what_is_no_argument(self, x):
        return x + self.beside

    def changes_what_is_no_state(self, x):
        self.beside += x
        return x.clone()

    def has_a_shape_that_depends(self, x):
        return x[x > 0].sum()

    def goes_to_the_host(self, x):
        return torch.from_numpy(x.numpy() + 1)


MISTAKES = {
    "counts": "replay 1 is off by",
    "asks_for_a_number": "it cannot be recorded .item takes numbers between host and device",
    "branches": "it cannot be recorded .__bool__ takes numbers between host and device",
    "draws": "it cannot be recorded .aten::rand draws at random",
    "draws_from_a_generator": "it cannot be recorded .aten::rand draws at random",
    "takes_from_the_host": "it cannot be recorded .tensor takes numbers between host and device",
    "reads_what_is_no_argument": r"reads a tensor \(3,\) that is no argument and no state",
    "changes_what_is_no_state": r"reads a tensor \(3,\) that is no argument and no state",
    "has_a_shape_that_depends": "has a result whose shape depends on numbers",
    "goes_to_the_host": "it cannot be recorded .numpy takes numbers between host and device",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_warning_and_the_function_itself(mistake, recorders, capfd):
    ours, theirs = Wrong(), Wrong()
    graphed = Graphed("it", getattr(ours, mistake), CPU)
    for call in range(WARM_UP + 5):
        x = torch.arange(3.0) + call
        torch.manual_seed(call)
        found = graphed(x)
        torch.manual_seed(call)
        expected = getattr(theirs, mistake)(x)
        if mistake != "counts" or call < WARM_UP:
            assert torch.equal(found, expected), call
    assert graphed.recorder is None
    warning = capfd.readouterr().err
    assert warning.count("\n") == 1
    assert re.match(f"warning: it runs without a CUDA graph: .*{MISTAKES[mistake]}", warning)


def test_a_number_from_outside_that_changes_is_found_at_the_next_comparison(recorders, capfd):
    wrong = Wrong()
    wrong.number = 2
    graphed = Graphed("it", wrong.has_a_number_from_outside, CPU)
    for call in range(WARM_UP + 30):
        if call == WARM_UP + 5:
            wrong.number = 3
        found = graphed(torch.ones(3))
        replay = call - WARM_UP + 1
        right = found[0] == wrong.number
        assert right == (not 6 <= replay < 10), replay  # what a test of whole runs finds at once
    assert "replay 10 is off by 33.3%" in capfd.readouterr().err


def descend(wrong, x):
    """A gradient step on sum(weight * x)."""
    wrong.optimizer.zero_grad()
    (wrong.weight * x).sum().backward()
    wrong.optimizer.step()
    return x.sum()


def test_a_learning_rate_that_is_baked_in_is_found(recorders, capfd):
    """Of an optimizer that is not among the parts, whose rate stays what it was when recorded."""
    wrong = Wrong()
    network = nn.Module()
    network.weight = wrong.weight
    graphed = Graphed("update", lambda x: descend(wrong, x), CPU, (network,))
    for call in range(WARM_UP + 10):
        wrong.optimizer.param_groups[0]["lr"] = 0.1 / (1 + call)
        graphed(torch.ones(3))
    # The first replay has the rate that was recorded; the second has that of the call before it.
    assert "warning: update runs without a CUDA graph: replay 2 is off by" in capfd.readouterr().err
    assert torch.allclose(
        wrong.weight, torch.full((3,), 1 - sum(0.1 / (1 + k) for k in range(WARM_UP + 10)))
    )


class Counting(torch.optim.Adam):
    """An optimizer with a number of its own, and without `count_step`."""

    def step(self):
        self.param_groups[0]["steps"] += 1
        super().step()


def test_an_optimizer_that_counts_by_itself_is_told(recorders, capfd):
    wrong = Wrong()
    wrong.optimizer = Counting([wrong.weight], lr=0.1, fused=True)
    wrong.optimizer.param_groups[0]["steps"] = 0
    graphed = Graphed("update", lambda x: descend(wrong, x), CPU, (wrong.optimizer,))
    for call in range(6):
        graphed(torch.full((3,), float(call)))
    assert "it changes numbers of its optimizer, which a replay would not" in capfd.readouterr().err
    # The call that was recorded counts as the one that ran.
    assert wrong.optimizer.param_groups[0]["steps"] == 6
    assert wrong.optimizer.state[wrong.weight]["step"] == 6


def test_a_weight_that_lies_elsewhere_is_recorded_anew(recorders, capfd):
    network = nn.Linear(3, 3)
    graphed = Graphed("it", network.forward, CPU, (network,))
    for call in range(30):
        if call == 10:
            network.weight.data = network.weight.data * 2
        if call == 20:
            network.weight = nn.Parameter(network.weight.detach() * 2)
        x = torch.full((2, 3), float(call))
        with torch.no_grad():
            assert torch.equal(graphed(x), network(x)), call
    assert recorders[0].recorded == 3
    assert graphed.replays == 10 - WARM_UP
    assert capfd.readouterr().err == ""


def test_a_cached_cast_of_a_weight_is_not_recorded(recorders, monkeypatch, capfd):
    """Were autocast's cache on, a record would read copies that no update reaches."""
    learner = Learner("pqn", precision="bf16")

    def play():
        with torch.no_grad(), learner.network.autocast("cpu"):
            for call in range(WARM_UP + 2):
                learner.choose(*draw_acting("pqn", call, 5))
        return capfd.readouterr().err

    was = torch.is_autocast_cache_enabled()
    assert play() == ""
    assert torch.is_autocast_cache_enabled() == was
    learner = Learner("pqn", precision="bf16")
    monkeypatch.setattr(torch, "set_autocast_cache_enabled", lambda enabled: None)
    assert "reads a tensor" in play()


MISTAKES_OF_GRAPHED = {
    # What Graphed does, and what it would be if it were forgotten.
    "an argument is not copied": ("_load", lambda self, given: _load_once(self, given)),
    "a rate is not filled in": ("_groups", lambda self: [dict(g) for g in _groups(self)]),
    "a result is not copied": ("_call", lambda self: _call_without_a_copy(self)),
    "a step is not counted": ("optimizers", property(lambda self: [], lambda self, value: None)),
}
_load, _groups, _call = Graphed._load, Graphed._groups, Graphed._call


def _load_once(self, given):
    if self.inputs is None:
        _load(self, given)


def _call_without_a_copy(self):
    before = self.replay
    results = _call(self)
    compared = self.replays in (1, 2, 10)
    return results if before is None or compared else tree_unflatten(self.results, self.form)


@pytest.mark.parametrize("mistake", MISTAKES_OF_GRAPHED)
def test_what_graphed_could_forget_would_be_noticed(mistake, recorders, monkeypatch, capfd):
    """The comparison of runs above fails, or a warning says why, for each planted mistake."""
    name, wrong = MISTAKES_OF_GRAPHED[mistake]
    monkeypatch.setattr(Graphed, name, wrong, raising=False)
    graphed, plain = Learner("pqn"), Learner("pqn", cuda_graphs=False)
    kept = []
    for call in range(40):
        for one in (graphed, plain):
            one.optimizer.param_groups[0]["lr"] = 1e-3 * (1 - call / 40)
        given = random_batch("pqn", call)
        kept.append((tree_leaves(graphed.learn(*given)), tree_leaves(plain.learn(*given))))
    differ = not same(graphed.tensors(), plain.tensors()) or not all(same(*pair) for pair in kept)
    assert differ or "warning: update runs without a CUDA graph" in capfd.readouterr().err


def test_arguments_of_another_shape_are_refused(recorders):
    graphed = Graphed("it", lambda x: x + 1, CPU)
    graphed(torch.zeros(3))
    with pytest.raises(ValueError, match=r"it: an argument was torch.float32 \(3,\) and is torch"):
        graphed(torch.zeros(1))
    with pytest.raises(ValueError, match=r"is torch\.int64"):
        graphed(torch.zeros(3, dtype=torch.int64))
    assert graphed(torch.zeros(3)).tolist() == [1, 1, 1]  # it goes on


def test_without_a_gpu_or_by_flag_the_function_runs():
    calls = []
    for enabled in (True, False):
        graphed = Graphed("it", lambda x: calls.append(1) or x + 1, CPU, enabled=enabled)
        for _ in range(20):
            assert graphed(torch.zeros(3)).tolist() == [1, 1, 1]
    assert len(calls) == 40


def test_comparisons_come_at_powers_of_ten(recorders):
    calls = []
    graphed = Graphed("it", lambda x: calls.append(1) or x + 1, CPU)
    at = []
    for call in range(1100):
        before = len(calls)
        graphed(torch.full((3,), float(call)))
        if len(calls) > before and call > WARM_UP:
            at.append(call - WARM_UP + 1)
    assert at == [2, 10, 100, 1000]


@pytest.mark.parametrize(
    ("share", "told"), [(1.0, False), (1.04, False), (1.06, True), (float("nan"), True)]
)
@pytest.mark.parametrize("of", ["result", "change"])
def test_a_replay_may_be_a_twentieth_off(of, share, told, recorders, capfd):
    """Of a result, or of what the function changes: a GPU adds in another order each time."""
    network = nn.Linear(1, 1000)
    scale = [1.0]  # what a comparison finds another than was recorded

    def function(x):
        change = 1e-4 * (scale[0] if of == "change" else 1.0)
        with torch.no_grad():
            network.weight += change * x
        return x * (scale[0] if of == "result" else 1.0)

    graphed = Graphed("it", function, CPU, (network,))
    for call in range(WARM_UP + 2):
        scale[0] = share if call == WARM_UP + 1 else 1.0
        graphed(torch.ones(1000, 1))
    assert (graphed.recorder is None) == told
    warning = capfd.readouterr().err
    assert ("replay 2 is off by" in warning) == told


def test_a_result_that_cancels_to_nothing_is_not_compared_for_its_noise(recorders, capfd):
    """As the mean of an advantage does: of it a GPU's rounding is all that is left."""
    noise = [0.0]
    graphed = Graphed("it", lambda x: x - x + noise[0], CPU)
    for call in range(WARM_UP + 12):
        noise[0] = 1e-8 * call
        graphed(torch.ones(3))
    assert capfd.readouterr().err == ""


class Stream:
    """In the place of torch.cuda.Stream: who waited for whom, and what ran where."""

    said, current = [], None

    def __init__(self, device=None):
        self.name = "own" if Stream.current else "current"
        Stream.current = Stream.current or self

    def wait_stream(self, other):
        Stream.said.append(f"{self.name} waits for {other.name}")


@contextlib.contextmanager
def on(stream):
    before, Stream.current = Stream.current, stream
    try:
        yield
    finally:
        Stream.current = before


@contextlib.contextmanager
def graph(graph, stream, capture_error_mode):
    Stream.said.append(f"recording on {stream.name}, {capture_error_mode}")
    with on(stream):
        yield


def test_warm_up_and_recording_are_on_one_stream(monkeypatch):
    """Autograd remembers the stream of the warm-up: of CudaRecorder itself, on a GPU made up."""
    monkeypatch.setattr(Stream, "said", [])
    monkeypatch.setattr(Stream, "current", None)
    Stream()  # the one that is current
    for name, fake in {
        **{"Stream": Stream, "stream": on, "graph": graph},
        **{"current_stream": lambda device: Stream.current},
        "CUDAGraph": lambda: types.SimpleNamespace(replay=lambda: Stream.said.append("replay")),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(graphs, "make_recorder", graphs.CudaRecorder)

    def function(x):
        Stream.said.append(f"function on {Stream.current.name}")
        return x + 1

    graphed = Graphed("it", function, CPU)
    for _ in range(WARM_UP + 3):
        graphed(torch.zeros(3))
    aside = ["own waits for current", "function on own", "current waits for own"]
    recording = ["recording on own, thread_local", "function on own"]
    compared = ["replay", "function on current"]
    assert Stream.said == aside * WARM_UP + recording + compared * 2 + ["replay"]
