"""What a machine with a GPU is asked in one call: are the CUDA graphs right, and how fast?

    python tests/gpu_check.py --out FOLDER [--limit 460] [--sections equal kernels ...]

Writes FOLDER/gpu_check.json anew after every section, so that what was found stays when time runs
out; a section that fails is noted in it and the next one begins. `--device cpu --quick` runs the
same code with the stand-in of the tests in the place of CUDA, on a machine without a GPU: of that
only "equal" means anything.
"""

import argparse
import collections
import contextlib
import io
import json
import math
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from algorithms import draw_acting  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from lab.common.device import pick_device, upload  # noqa: E402
from lab.training import graphs  # noqa: E402
from lab.training.algorithms import ALGORITHMS, load_script, make_network, value_head  # noqa: E402
from lab.training.frames import OBS_SHAPE, channels_last  # noqa: E402
from lab.training.graphs import Graphed  # noqa: E402

ACTIONS = 4
VARIANTS = {"tanh-hr": {}, "relu": {"activation": "relu", "branches": 1}}
# Precision, variant, and whether cuDNN may only take kernels that give the same bits each time:
# then the same updates by graph and without are to be the same, bit for bit.
EQUAL = (
    ("fp32", "tanh-hr", True),
    ("bf16", "tanh-hr", True),
    ("tf32", "tanh-hr", True),
    ("fp32", "relu", True),
    ("fp32", "tanh-hr", False),
)
# How far 100 updates by graph may end from 100 without, as a share of what they do to the outputs:
# sums in another order, as a GPU takes them from run to run anyway, grow over the updates.
FAR = {"fp32": 0.02, "tf32": 0.05, "bf16": 0.2}
GAMES = {"dqn": 4, "ppo": 8, "pqn": 128}
# Whole runs: algorithm, flags, agent steps before the speed is measured and while. Interleaved.
REPEATS = 3
RUNS = (
    ("dqn", "", 3_000, 8_000),
    ("dqn", "--num-envs 8", 3_000, 12_000),
    ("ppo", "", 3_072, 12_288),
    ("pqn", "", 8_192, 28_672),
    ("pqn", "--precision bf16", 8_192, 28_672),
)
ONCE = (  # after them, once each
    ("dqn", "--no-cuda-graphs", 2_000, 3_000),
    ("ppo", "--no-cuda-graphs", 2_048, 8_192),
    ("pqn", "--no-cuda-graphs", 4_096, 20_480),
    ("ppo", "--precision bf16", 3_072, 12_288),
    ("dqn", "--precision tf32", 3_000, 8_000),
    ("ppo", "--precision tf32", 3_072, 12_288),
    ("pqn", "--precision tf32", 8_192, 28_672),
)
PHASED = (("dqn", "", 3_000, 8_000), ("ppo", "", 3_072, 12_288), ("pqn", "", 8_192, 40_960))
QUICK_RUNS = (
    ("dqn", "--buffer-size 3000", 1_200, 1_000),
    ("ppo", "--num-steps 32", 256, 512),
    ("pqn", "--num-envs 8 --num-minibatches 8", 256, 512),
)
QUICK_FLAGS = "--latent-dim 32 --metrics-samples 512"


class Check:
    """The sections, one method each: what it returns goes into the JSON."""

    def __init__(self, args):
        self.args, self.device = args, pick_device(args.device)
        self.gpu = self.device.type == "cuda"
        self.start, self.found = time.monotonic(), {"sections": {}}
        self.speeds, self._obs, self.made = {}, None, {}
        self.memory_of_32 = None
        if not self.gpu:
            from standin import StandIn

            graphs.make_recorder = StandIn
        self.batch_sizes = {"dqn": 32, "ppo": 256, "pqn": 128}
        if args.quick:
            self.batch_sizes = dict.fromkeys(ALGORITHMS, 8)

    def left(self) -> float:
        return self.args.limit - (time.monotonic() - self.start)

    def run(self, name, needs):
        """A section, if the seconds that it needs are left."""
        began, entry = time.monotonic(), {}
        self.section = {}  # what is there already when it fails
        if self.left() < needs:
            entry["skipped"] = f"{self.left():.0f} s left, needs {needs}"
        else:
            try:
                with _limited(max(self.left(), 5)):
                    getattr(self, name)(self.section)
            except Exception as error:  # the next section may still work
                entry["error"] = f"{type(error).__name__}: {error}"[:1000]
                entry["traceback"] = traceback.format_exc()[-3000:]
            entry["found"] = self.section
        entry["seconds"] = round(time.monotonic() - began, 1)
        self.found["sections"][name] = entry
        self.write()
        said = entry.get("error") or entry.get("skipped") or ""
        print(f"{name}: {entry['seconds']} s", said, flush=True)

    def write(self):
        self.args.out.mkdir(parents=True, exist_ok=True)
        path = self.args.out / "gpu_check.json"
        path.write_text(json.dumps(self.found, indent=1, default=str) + "\n")

    @contextlib.contextmanager
    def noted(self, found, name):
        """Note what goes wrong in a part of a section, and go on."""
        try:
            yield
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"[:1000]}
            found[name]["traceback"] = traceback.format_exc()[-2000:]

    def machine(self, found):
        found |= {
            "device": torch.cuda.get_device_name() if self.gpu else platform.processor(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if self.gpu else None,
            "kernel": platform.release(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "loadavg": os.getloadavg(),
        }
        with self.noted(found, "commit"):
            done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True)
            found["commit"] = done.stdout.decode().strip()
        if self.gpu:
            query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm"]
            with self.noted(found, "nvidia-smi"):
                done = subprocess.run([*query, "--format=csv,noheader"], capture_output=True)
                found["nvidia-smi"] = done.stdout.decode().strip()

    # --- what is computed

    def args_of(self, algorithm, precision="fp32", variant="tanh-hr", **flags):
        flags = {"precision": precision, "device": self.args.device} | VARIANTS[variant] | flags
        if self.args.quick:
            flags = {"latent_dim": 32, "metrics_samples": 512} | flags
        return load_script(algorithm).Args(**flags)

    def learner(self, algorithm, args, planar=False):
        """`make_graphs` of a script with the network, its optimizer and the target network.

        `planar`: the maps lie channel by channel in memory, not pixel by pixel.
        """
        pick_device(args.device, args.precision)
        module = load_script(algorithm)
        layout = torch.contiguous_format if planar else torch.channels_last
        torch.manual_seed(0)
        count = 2 if algorithm == "dqn" else 1
        networks = [make_network(algorithm, ACTIONS, args) for _ in range(count)]
        for network in networks:
            network.load_state_dict(networks[0].state_dict())
            network.to(self.device, memory_format=layout)
            if planar:
                network.feature_maps = _planar_maps(network)
        if algorithm == "pqn":
            optimizer = module.RAdam(networks[0].parameters(), lr=args.learning_rate)
        else:
            optimizer = torch.optim.Adam(
                networks[0].parameters(), lr=1e-4, eps=args.adam_eps, fused=True
            )
        given = (*networks, optimizer)
        if algorithm == "dqn":
            given += (self.replay_memory(),)
        choose, learn = module.make_graphs(*given, args)
        return choose, learn, networks, optimizer

    def replay_memory(self):
        """Of noise, the same on every machine."""
        from lab.training.replay import ReplayBuffer

        if self.memory_of_32 is None:
            rng = np.random.default_rng(0)
            memory = ReplayBuffer(500, 1, self.device)
            memory.start(rng.integers(256, size=(1, *OBS_SHAPE), dtype=np.uint8))
            for _ in range(500):
                obs = rng.integers(256, size=(1, *OBS_SHAPE), dtype=np.uint8)
                ends = rng.random(1) < 0.2
                memory.add(obs, rng.integers(ACTIONS, size=1), rng.normal(size=1), ends, ends)
            self.memory_of_32 = memory
        return self.memory_of_32

    def probe(self):
        """Observations whose outputs are compared."""
        generator = torch.Generator().manual_seed(99)
        obs = torch.randint(256, (32, *OBS_SHAPE), dtype=torch.uint8, generator=generator)
        return channels_last(obs).to(self.device)

    def batch(self, algorithm, call):
        """Another minibatch at each call, the same on every machine."""
        if algorithm == "dqn":
            draws = torch.Generator().manual_seed(call)
            memory = self.replay_memory()
            places = memory.locate(memory.draw(self.batch_sizes["dqn"], draws))
            return [tensor.to(self.device) for tensor in places]
        size, generator = self.batch_sizes[algorithm], torch.Generator().manual_seed(call)
        obs = torch.randint(256, (2, size, *OBS_SHAPE), dtype=torch.uint8, generator=generator)
        actions = torch.randint(ACTIONS, (size,), generator=generator)
        floats = torch.randn(4, size, generator=generator)
        ends = floats[0] > 1
        given = {
            "ppo": (
                *(channels_last(obs[0]), actions, -floats[0].abs(), floats[1], ends),
                *(floats[2], floats[3], floats[1]),
            ),
            "pqn": (channels_last(obs[0]), actions, floats[1], ends, floats[2], floats[3]),
        }[algorithm]
        return [tensor.to(self.device) for tensor in given]

    def acting(self, algorithm, call):
        """What `choose` is given, on the host."""
        return draw_acting(algorithm, call, self.games(algorithm))

    def games(self, algorithm) -> int:
        return GAMES[algorithm] if not self.args.quick else 4

    def equal(self, found):
        """Updates by graph against the same ones without, and these against themselves."""
        updates = 25 if self.args.quick else 100
        for algorithm in self.args.algorithms:
            for precision, variant, deterministic in EQUAL:
                name = f"{algorithm} {variant} {precision}"
                if deterministic:
                    name += " deterministic"
                torch.backends.cudnn.deterministic = deterministic
                with self.noted(found, name):
                    found[name] = self.equal_updates(algorithm, precision, variant, updates)
                torch.backends.cudnn.deterministic = False
                self.found["sections"]["equal"] = {"found": found}
                self.write()

    def equal_updates(self, algorithm, precision, variant, updates):
        batches = [self.batch(algorithm, call) for call in range(10)]
        probe = self.probe()
        runs, said = {}, io.StringIO()
        for way in ("graph", "eager", "again"):
            args = self.args_of(algorithm, precision, variant, cuda_graphs=way == "graph")
            _, learn, networks, optimizer = self.learner(algorithm, args)
            before = _outputs(networks[0], probe), _named(networks, optimizer)
            with contextlib.redirect_stderr(said), _comparisons(learn) as compared:
                for k in range(updates):  # while the learning rate falls; exact also in fp32
                    rate = float(np.float32(1e-3 * (1 - k / updates)))
                    optimizer.param_groups[0]["lr"] = rate
                    last = learn(*batches[k % len(batches)])
            after = _outputs(networks[0], probe), _named(networks, optimizer)
            runs[way] = {"before": before, "after": after, "last": _leaves_by_name(last)}
            if way == "graph":
                entry = {"replays": learn.replays, "compared": compared}
        graph, eager, again = (runs[way] for way in ("graph", "eager", "again"))
        entry |= {
            "updates": updates,
            "warnings": said.getvalue(),
            "graph_from_eager": _far(graph, eager),
            "eager_from_eager": _far(again, eager),
            "identical_tensors": f"{_identical(graph, eager)} by graph, "
            f"{_identical(again, eager)} of two without, of {len(eager['after'][1])}",
            "worst_tensors": _worst_tensors(graph, eager),
            "worst_tensors_eager": _worst_tensors(again, eager),
            "worst_outputs": _worst_outputs(graph, eager),
        }
        # Where two runs without graphs differ, each rounding of sums in another order grows.
        allowed = max(FAR[precision], 10 * entry["eager_from_eager"])
        enough = entry["replays"] >= updates - 4 * graphs.WARM_UP
        entry["ok"] = not entry["warnings"] and enough and entry["graph_from_eager"] <= allowed
        return entry

    def equal_acting(self, found):
        """Actions and values by graph against the function, bit for bit where the kernels are."""
        for algorithm in ALGORITHMS:
            for precision in FAR:
                name = f"{algorithm} {precision}"
                with self.noted(found, name), contextlib.redirect_stderr(io.StringIO()) as said:
                    args = self.args_of(algorithm, precision)
                    choose, *_ = self.learner(algorithm, args)
                    differ, worst = 0, 0.0
                    for call in range(20):
                        inputs = self.acting(algorithm, call)
                        out = tree_leaves(choose(*inputs))
                        plain = choose.function(*(upload(x, self.device) for x in inputs))
                        for one, other in zip(out, tree_leaves(plain), strict=True):
                            differ += not torch.equal(one, other)
                            worst = max(worst, (one.double() - other.double()).abs().max().item())
                    found[name] = {"differ": differ, "by": worst, "replays": choose.replays}
                    found[name]["warnings"] = said.getvalue()
                    found[name]["ok"] = choose.replays >= 20 - graphs.WARM_UP and worst < 1e-2

    # --- how fast

    def games_of(self, count):
        """Games of Breakout, made once: 128 of them take 10 seconds."""
        from lab.training.atari import AtariEnvs

        if count not in self.made:
            self.made[count] = AtariEnvs("Breakout", count, 1)
            self.made[count].close = lambda: None  # by a run: the next one goes on with them
        return self.made[count]

    def whole_run(self, algorithm, flags, warm, measured) -> float:
        """Agent steps/s of a script's own `main`, once it learns, without measurements."""
        from lab.bench.timing import NEVER, read_speed_points
        from lab.training.algorithms import script_args

        script = load_script(algorithm)
        with tempfile.TemporaryDirectory() as folder:
            given = ["--device", self.args.device, "--runs-dir", folder, *flags.split()]
            given += ["--total-timesteps", str(warm + measured)]
            given += ["--metrics-every", str(NEVER), "--checkpoint-every", str(NEVER)]
            if algorithm != "ppo":
                given += ["--start-e", "0.01", "--end-e", "0.01"]
            if algorithm == "dqn":
                given += ["--learning-starts", str(warm - 1_000)]
            args = script_args(algorithm, *given)
            envs = self.games_of(args.num_envs)
            script.make_envs = lambda args: (envs, envs.reset(seed=args.seed)[0])
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                assert script.main(args) == 0, said.getvalue()[-500:]
            assert "warning" not in said.getvalue(), said.getvalue()[-500:]
            points = read_speed_points(warm, next(Path(folder).iterdir()))
        (step, start), (last, end) = points[0], points[-1]
        return (last - step) / (end - start)

    def speed(self, found):
        """Whole runs in turn, several times, and the games alone beside: agent steps/s."""
        from lab.bench.timing import settle, time_emulator

        planned = [run for _ in range(REPEATS) for run in RUNS] + list(ONCE)
        for algorithm, flags, warm, measured in QUICK_RUNS if self.args.quick else planned:
            name = f"{algorithm} {flags}".strip()
            given = f"{flags} {QUICK_FLAGS}" if self.args.quick else flags
            games = _flag(flags, "--num-envs", GAMES[algorithm])
            entry = found.setdefault(name, {"rates": [], "emulator": []})
            try:
                with _limited(60):
                    envs = self.games_of(games)
                    settle(envs)
                    entry["emulator"].append(round(1 / time_emulator(envs, 0.7)))
                    entry["rates"].append(round(self.whole_run(algorithm, given, warm, measured)))
                rates, alone = entry["rates"], entry["emulator"]
                entry |= {"steps_per_second": statistics.median(rates)}
                shares = [rate / one for rate, one in zip(rates, alone, strict=True)]
                entry["of_emulator"] = round(statistics.median(shares), 3)
                self.speeds[name] = entry
            except Exception as error:
                entry |= {"error": f"{type(error).__name__}: {error}"[:1000]}
                entry["traceback"] = traceback.format_exc()[-2000:]
            print("  ", name, {k: v for k, v in entry.items() if k != "traceback"}, flush=True)
            self.found["sections"]["speed"] = {"found": found}
            self.write()
            if self.left() < 15:
                break

    def phases(self, found):
        """Where the time of a whole run goes: calls and host seconds of each part, once it learns.

        On a GPU a part that waits for it takes the time of what was launched before.
        """
        for algorithm, flags, warm, measured in QUICK_RUNS if self.args.quick else PHASED:
            spent = collections.defaultdict(lambda: [0, 0.0])
            with self.noted(found, algorithm), _timed_parts(load_script(algorithm), warm, spent):
                rate = self.whole_run(
                    algorithm, flags + f" {QUICK_FLAGS}" * self.args.quick, warm, measured
                )
                found[algorithm] = {"steps_per_second": round(rate), "steps": measured}
                parts = sorted(spent.items(), key=lambda part: -part[1][1])
                for name, (calls, seconds) in parts:
                    found[algorithm][name] = [calls, round(seconds, 4)]

    def timed(self, count, call, *given) -> dict:
        """Milliseconds of a call: on the GPU's own clock, and until the host may go on."""
        for _ in range(3):
            call(*given)
        if not self.gpu:
            start = time.perf_counter()
            call(*given)
            return {"gpu": None, "host": round(1e3 * (time.perf_counter() - start), 4)}
        host, gpu = [], []
        for _ in range(5):
            torch.cuda.synchronize()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            start = time.perf_counter()
            for _ in range(count):
                call(*given)
            host.append((time.perf_counter() - start) / count)
            end.record()
            torch.cuda.synchronize()
            gpu.append(begin.elapsed_time(end) / count)
        return {
            "gpu": round(statistics.median(gpu), 4),
            "host": round(1e3 * statistics.median(host), 4),
        }

    def seconds(self, call, *given, repeats=3) -> float:
        """Seconds of a call, until the device is done: the median."""
        times = []
        for _ in range(1 if self.args.quick else repeats + 1):
            self.wait()
            start = time.perf_counter()
            call(*given)
            self.wait()
            times.append(time.perf_counter() - start)
        return round(statistics.median(times[-repeats:]), 5)

    def wait(self):
        if self.gpu:
            torch.cuda.synchronize()

    def observations(self, count):
        """Observations of Breakout at random, uint8 (count, 4, 84, 84), on the device."""
        from lab.training.atari import AtariEnvs

        if self._obs is None:
            envs, rng = AtariEnvs("Breakout", 8, 1), np.random.default_rng(0)
            obs = [envs.reset()[0]]
            while 8 * len(obs) < count:
                obs.append(envs.step(rng.integers(ACTIONS, size=8))[0])
            envs.close()
            self._obs = channels_last(torch.from_numpy(np.concatenate(obs)[:count]))
        return self._obs.to(self.device)

    def measure(self, found):
        """Seconds of one measurement of the representation, and how they split."""
        from lab.training.measure import (
            PROBES,
            hidden_layers,
            loss_gradients,
            measure_gradient,
            measure_representation,
        )
        from metrics import dead_neurons, measure_layer, q_contribution

        obs = self.observations(512 if self.args.quick else 2048)
        for algorithm in ALGORITHMS:
            with self.noted(found, algorithm):
                args = self.args_of(algorithm)
                _, _, (network, *_), _ = self.learner(algorithm, args)
                head, everywhere = value_head(network), args.apply_to == "all"
                layers = hidden_layers(network, obs, everywhere)
                dead = {name: dead_neurons(layer) for name, layer in layers.items()}

                def mean_value(copied, algorithm=algorithm):
                    outputs = copied(obs[:PROBES])
                    return (outputs[1] if algorithm == "ppo" else outputs).mean()

                weights = {
                    name: measure_gradient(*pair)
                    for name, pair in loss_gradients(network, mean_value, everywhere).items()
                }
                found[algorithm] = {
                    "loss_gradients": self.seconds(loss_gradients, network, mean_value),
                    "hidden_layers": self.seconds(hidden_layers, network, obs, everywhere),
                    "measure_representation": self.seconds(
                        measure_representation, layers, weights, head, algorithm
                    ),
                    "q_contribution": self.seconds(
                        q_contribution, layers["z"], dead["z"], head.weight, head.bias
                    ),
                }
                for name, layer in layers.items():
                    found[algorithm][name] = {
                        "shape": list(layer.shape),
                        "dead_neurons": self.seconds(dead_neurons, layer),
                        "svdvals": self.seconds(torch.linalg.svdvals, layer.double()),
                        "measure_layer": self.seconds(measure_layer, layer, dead[name]),
                    }

    def kernels(self, found):
        """Replays alone, graphed calls and plain ones; then maps plane by plane. Milliseconds."""
        for algorithm in ALGORITHMS:
            batch, inputs = self.batch(algorithm, 0), self.acting(algorithm, 0)
            for precision in FAR:
                for way in ("channels_last", "planar"):
                    name = f"{algorithm} {precision} {way}"
                    with self.noted(found, name), contextlib.redirect_stderr(io.StringIO()):
                        args = self.args_of(algorithm, precision)
                        found[name] = {}
                        choose, learn, *_ = self.learner(algorithm, args, way == "planar")
                        for _ in range(15):  # past the warm-up and the first comparisons
                            learn(*batch)
                            choose(*inputs)
                        for part, graphed in (("act", choose), ("update", learn)):
                            if graphed.replay is not None:
                                found[name][f"{part}, replay alone"] = self.timed(
                                    30, graphed.replay
                                )
                        if way == "planar":
                            continue
                        found[name]["update"] = self.timed(20, learn, *batch)
                        found[name]["update, plain"] = self.timed(5, learn.function, *batch)
                        found[name]["act, actions on the host"] = self.timed(
                            20, lambda c=choose, i=inputs: _actions(c(*i)).cpu()
                        )

    # --- whether it lasts

    def memory(self, found):
        """Megabytes while it acts and learns, which is to stay as it is from the start on."""
        updates = 60 if self.args.quick else 2_000
        marks = sorted({updates // 20, updates // 5, updates // 2, updates})
        for algorithm in ALGORITHMS:
            with self.noted(found, algorithm), contextlib.redirect_stderr(io.StringIO()) as said:
                choose, learn, *_ = self.learner(algorithm, self.args_of(algorithm))
                batch, inputs = self.batch(algorithm, 0), self.acting(algorithm, 0)
                for _ in range(3):
                    learn(*batch)
                    choose(*inputs)
                points = {"before the graphs": self.megabytes()}
                for count in range(4, updates + 1):
                    learn(*batch)
                    choose(*inputs)
                    if count in marks:
                        points[count] = self.megabytes()
                first, last = points[marks[1]], points[updates]
                growth = {what: round(last[what] - first[what], 3) for what in first}
                # The host's: what comparisons and allocators leave behind, but no more.
                allowed = {"allocated": 0.01, "reserved": 64, "host": 64}
                ok = all(growth[what] <= most for what, most in allowed.items() if what in growth)
                found[algorithm] = {"points": points, "growth": growth, "warnings": said.getvalue()}
                found[algorithm]["ok"] = ok and not said.getvalue()

    def megabytes(self) -> dict:
        self.wait()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found = {"host": round(pages * resource.getpagesize() / 1e6, 1)}
        if self.gpu:
            found["allocated"] = round(torch.cuda.memory_allocated() / 1e6, 3)
            found["reserved"] = round(torch.cuda.memory_reserved() / 1e6, 3)
        return found

    def resume(self, found):
        """A run of PPO that is stopped and goes on to its end."""
        from lab.common.events import read_points
        from lab.training.algorithms import script_path
        from lab.training.signals import CAN_RESUME

        total, plays = (2_048, 1.0) if self.args.quick else (20_480, 2.0)
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(script_path("ppo")), "--device", self.args.device]
            command += ["--runs-dir", folder, "--total-timesteps", str(total)]
            command += ["--metrics-every", "4000"]
            if self.args.quick:
                command += [*QUICK_FLAGS.split(), "--num-steps", "32"]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            process = subprocess.Popen(command, **pipes)
            try:
                line = process.stdout.readline()
                while "parameters on" not in line and line:
                    line = process.stdout.readline()
                found["first line"] = line.strip().replace(folder, "")
                time.sleep(plays)
                process.send_signal(signal.SIGTERM)
                out, _ = process.communicate(timeout=30)
            finally:
                process.kill()
            found["stopped"] = process.returncode == CAN_RESUME
            found["said"] = out[-300:].replace(folder, "")
            command += ["--resume", "auto"]
            done = subprocess.run(command, timeout=60, check=False, **pipes)
            found["said again"] = done.stdout[-600:].replace(folder, "")
            (run,) = Path(folder).iterdir()
            points, _ = read_points(run)
            finite = all(math.isfinite(p.value) for p in points)
            rates = [p.step for p in points if p.tag == "charts/learning_rate"]
            found["ok"] = done.returncode == 0 and "resumed at" in done.stdout and finite
            found["ok"] &= found["stopped"] and len(set(rates)) == len(rates) > 0
            found["ok"] &= max(rates, default=0) == total

    def fallback(self, found):
        """An update that cannot be recorded: one warning, the function's results, and no harm."""
        steps, said = 12, io.StringIO()
        ends = {}
        for way in ("fails", "plain", "after"):
            args = self.args_of("ppo", cuda_graphs=way == "after")
            _, learn, networks, optimizer = self.learner("ppo", args)
            step = learn.function

            def asks(*batch, step=step):
                parts = step(*batch)
                parts["value_loss"].item()  # which waits for the GPU
                return parts

            if way == "fails":
                learn = Graphed("update", asks, self.device, (*networks, optimizer))
            with contextlib.redirect_stderr(said if way == "fails" else io.StringIO()) as output:
                for call in range(steps):
                    learn(*self.batch("ppo", call))
            ends[way] = _outputs(networks[0], self.probe())
            if way == "after":
                found["a graph afterwards"] = {"replays": learn.replays, "said": output.getvalue()}
        change = ends["plain"].norm().item()
        found["warning"] = said.getvalue()
        found["off by"] = (ends["fails"] - ends["plain"]).norm().item() / change
        found["graph off by"] = (ends["after"] - ends["plain"]).norm().item() / change
        found["ok"] = said.getvalue().count("\n") == 1 and found["off by"] < 0.02
        found["ok"] &= found["graph off by"] < 0.02 and learn.replays >= steps - graphs.WARM_UP


@contextlib.contextmanager
def _limited(seconds: float):
    """Raise TimeoutError when the block takes longer; an outer limit goes on afterwards."""

    def stop(number, frame):
        raise TimeoutError(f"more than {seconds:.0f} s")

    outer = signal.getitimer(signal.ITIMER_REAL)[0] or math.inf
    handler, began = signal.signal(signal.SIGALRM, stop), time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, min(seconds, outer))
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, handler)
        left = outer - (time.monotonic() - began)
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.01) if math.isfinite(left) else 0)


def _planar_maps(network):
    def feature_maps(obs, dtype=torch.float32):
        maps = [obs.to(dtype, memory_format=torch.contiguous_format).div_(255.0)]
        for convolution in network.convolutions:
            maps.append(convolution(maps[-1]))
        return maps[1:]

    return feature_maps


def _flag(flags: str, name: str, default: int) -> int:
    words = flags.split()
    return int(words[words.index(name) + 1]) if name in words else default


def _actions(results):
    """The actions among the results of `choose`."""
    return next(out for out in tree_leaves(results) if out.dtype == torch.int64)


@torch.no_grad()
def _outputs(network, obs):
    return torch.cat([part.flatten() for part in tree_leaves(network(obs))]).double()


def _named(networks, optimizer) -> dict:
    """The tensors that updates change, by name."""
    names = dict(networks[0].named_parameters())
    found = {name: parameter.detach().clone() for name, parameter in names.items()}
    for name, parameter in names.items():
        for what, tensor in optimizer.state.get(parameter, {}).items():
            found[f"{name} {what}"] = tensor.clone()
    return found


def _leaves_by_name(results) -> dict:
    if isinstance(results, dict):
        return {name: tensor.double() for name, tensor in results.items()}
    return {f"output {i}": tensor.double() for i, tensor in enumerate(tree_leaves(results))}


def _far(one, other) -> float:
    """How far the outputs of two runs are, as a share of what the other one changed."""
    change = (other["after"][0] - other["before"][0]).norm()
    return ((one["after"][0] - other["after"][0]).norm() / change).item()


def _identical(one, other) -> int:
    pairs = zip(one["after"][1].values(), other["after"][1].values(), strict=True)
    return sum(torch.equal(*pair) for pair in pairs)


def _worst_tensors(one, other) -> dict:
    errors = {}
    for name, tensor in other["after"][1].items():
        before = other["before"][1].get(name, torch.zeros_like(tensor)).double()
        change = (tensor.double() - before).norm().item()
        difference = (one["after"][1][name].double() - tensor.double()).norm().item()
        errors[name] = difference / max(change, 1e-300)
    return _largest(errors)


def _worst_outputs(one, other) -> dict:
    pairs = ((name, one["last"][name], tensor) for name, tensor in other["last"].items())
    return _largest({n: ((a - b).norm() / b.norm().clamp(min=1e-12)).item() for n, a, b in pairs})


def _largest(errors: dict, count=4) -> dict:
    worst = sorted(errors.items(), key=lambda item: -item[1])[:count]
    return {name: float(f"{error:.3g}") for name, error in worst if error != 0}


@contextlib.contextmanager
def _timed_parts(script, warm, spent):
    """Note calls and host seconds of the parts of a run, from this agent step on, by name."""
    from lab.training.atari import AtariEnvs
    from lab.training.replay import ReplayBuffer
    from lab.training.run import Run

    parts = [(AtariEnvs, "send"), (AtariEnvs, "recv"), (torch.Tensor, "cpu"), (Run, "log")]
    parts += [(ReplayBuffer, "locate"), (ReplayBuffer, "draw"), (ReplayBuffer, "add")]
    parts += [(Graphed, "__call__"), (Graphed, "_load"), (Run, "log_episodes")]
    parts += [(script, name) for name in ("play", "update", "gae", "take_steps")]
    parts = [(owner, name) for owner, name in parts if hasattr(owner, name)]
    plain, goes_on, on = [getattr(*part) for part in parts], Run.goes_on, [False]

    def noting(name, function):
        def call(*given, **more):
            start = time.perf_counter()
            try:
                return function(*given, **more)
            finally:
                if on[0]:
                    is_graphed = name.startswith("_")
                    label = f"{given[0].name} {name}" if is_graphed else name
                    spent[label][0] += 1
                    spent[label][1] += time.perf_counter() - start

        return call

    def switch(run):
        on[0] = run.step >= warm
        return goes_on(run)

    Run.goes_on = switch
    for (owner, name), function in zip(parts, plain, strict=True):
        setattr(owner, name, noting(name, function))
    try:
        yield
    finally:
        Run.goes_on = goes_on
        for (owner, name), function in zip(parts, plain, strict=True):
            setattr(owner, name, function)


@contextlib.contextmanager
def _comparisons(graphed):
    """Collect what each comparison of a replay with the function found, the worst by name."""
    found, errors = {}, []
    plain = graphs._result_error, graphs._change_error, graphed._compare

    def names():
        leaves = len(graphed.results)
        found = [f"result {i}" for i in range(leaves)]
        for i, module in enumerate(graphed.modules):
            found += [f"network {i} {name}" for name in module.state_dict()]
        for optimizer in graphed.optimizers:
            for i, state in enumerate(optimizer.state.values()):
                found += [f"{name} of parameter {i}" for name in state]
        return found + [f"argument {i}" for i in range(len(graphed.inputs))]

    def noting(function):
        def call(*given):
            errors.append(function(*given))
            return errors[-1]

        return call

    def compare():
        errors.clear()
        named = names()
        replay = graphed.replays
        outputs = plain[2]()
        labels = named if len(named) == len(errors) else range(len(errors))
        found[f"{len(found)}: replay {replay}"] = _largest(dict(zip(labels, errors, strict=True)))
        return outputs

    graphs._result_error, graphs._change_error = noting(plain[0]), noting(plain[1])
    graphed._compare = compare
    try:
        yield found
    finally:
        graphs._result_error, graphs._change_error = plain[:2]
        del graphed._compare


SECTIONS = {  # in the order of their worth, with the seconds that each needs; speed takes the rest
    "machine": 1,
    "equal": 45,
    "equal_acting": 5,
    "fallback": 3,
    "memory": 12,
    "resume": 60,
    "phases": 40,
    "kernels": 15,
    "measure": 25,
    "speed": 60,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=460)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--sections", nargs="*", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--algorithms", nargs="*", default=ALGORITHMS, help="of the section equal")
    check = Check(parser.parse_args())
    for name, needs in SECTIONS.items():
        if name in check.args.sections:
            check.run(name, 0 if check.args.quick else needs)
    sections = check.found["sections"]
    wrong, failed = [], []
    for section, entry in sections.items():
        failed += [section] if "error" in entry or "skipped" in entry else []
        found = entry.get("found", {})
        wrong += [section] if found.get("ok") is False else []
        for name, part in found.items():
            if isinstance(part, dict):
                wrong += [f"{section}: {name}"] if part.get("ok") is False else []
                failed += [f"{section}: {name}"] if "error" in part else []
    print("wrong:", wrong or "nothing", flush=True)
    print("failed or left out:", failed or "nothing", flush=True)
    for name, entry in check.speeds.items():
        share, rate = entry["of_emulator"], entry["steps_per_second"]
        print(f"{name:30s} {rate:8,.0f}/s  {share:.2f} of the emulator alone")
    return int(bool(wrong or failed))


if __name__ == "__main__":
    sys.exit(main())
