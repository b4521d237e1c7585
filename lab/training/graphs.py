"""CUDA graphs: launch the kernels of an update together, instead of one by one.

A GPU computes an update of these networks in less time than Python takes to launch its hundred
kernels. `Graphed` has the GPU record them once and replays the record. On the CPU, and wherever a
replay is not what the function does, the function itself runs.
"""

import collections
import contextlib
import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from lab.common.cli import say
from lab.common.device import upload

WARM_UP = 3  # calls of the function itself before the one that is recorded
TOLERANCE = 0.05  # how far a replay may be from the function, as a share of what the function does
NEAR_ZERO = 1e-3  # smaller results are compared as if they had this size
FIXED_NUMBERS = ("betas", "eps", "weight_decay")  # of an optimizer, that its kernels have in them


class CudaRecorder:
    """Records functions on a GPU, on a stream of its own, on which they run before, too.

    Autograd remembers the stream on which a weight was first used, and a recording breaks off that
    waits for another one.
    """

    rate_dtype = torch.float32  # of a learning rate that kernels read from memory

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    @contextlib.contextmanager
    def on_own_stream(self):
        """Run the block on the stream of recordings, in order with all that is around it."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def record(self, function: Callable, inputs: list[Tensor], held: list[Tensor]):
        """Record a function of these inputs; return what replays it, and its results' tensors.

        `held`, what it reads and changes besides, is for the stand-in of the tests. Raises
        RuntimeError for what a graph cannot hold.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            outputs = function(*inputs)
        return graph.replay, outputs


def make_recorder(device: torch.device) -> CudaRecorder | None:
    """Return what records on this device; None where functions just run."""
    return CudaRecorder(device) if device.type == "cuda" else None


class Staging:
    """Pinned memory of the host, from which a GPU fetches an argument by itself."""

    SLOTS = 4  # so that the host may be some calls ahead

    def __init__(self, static: Tensor):
        self.static = static
        self.slots: collections.deque[tuple[Tensor, torch.cuda.Event]] = collections.deque()

    def fetch(self, tensor: Tensor):
        """Copy a tensor, of the host or of the device, to where the kernels read it."""
        if self.static.device.type != "cuda" or tensor.device.type == "cuda":
            self.static.copy_(tensor)
            return
        if len(self.slots) < self.SLOTS:
            pinned = torch.empty_like(self.static, device="cpu", pin_memory=True)
            fetched = torch.cuda.Event()
        else:
            pinned, fetched = self.slots.popleft()
            fetched.synchronize()  # the GPU has taken what was in it before
        self.static.copy_(pinned.copy_(tensor), non_blocking=True)
        fetched.record()
        self.slots.append((pinned, fetched))


class Graphed:
    """A function of tensors that returns tensors, replayed as a CUDA graph.

    Called like the function, with tensors on the host or on the device; what it returns is the
    caller's to keep. A replay runs no line of the function, so all that differs between calls has
    to come in as an argument, of the same shape each time. Inside, nothing is drawn at random, no
    number is asked of the device (`item`, `if tensor`), and nothing changes but what the modules
    and optimizers in `parts` hold, in place; tensors among the parts are only read. Learning rates
    are set in `param_groups`, as ever.

    The first calls run the function itself. Replays 1, 2, 10, 100, ... are compared with it, from
    the same state; if they differ, or it cannot be recorded, a warning says so and it runs itself.
    Where the memory of a part has moved, as where a state was loaded, it is recorded anew.
    """

    def __init__(
        self,
        name: str,
        function: Callable,
        device: torch.device,
        parts: tuple[nn.Module | torch.optim.Optimizer | Tensor, ...] = (),
        enabled: bool = True,
    ):
        self.name, self.function, self.device = name, function, device
        self.modules = [part for part in parts if isinstance(part, nn.Module)]
        self.optimizers = [part for part in parts if isinstance(part, torch.optim.Optimizer)]
        # Of all layers by name, as a parameter may be replaced. Cheaper at each call than a walk.
        layers = [layer for module in self.modules for layer in module.modules()]
        self.weights = [layer._parameters for layer in layers]
        self.read = [part for part in parts if isinstance(part, Tensor)]
        self.recorder = make_recorder(device) if enabled else None
        self.inputs: list[Tensor] | None = None
        self.staging: list[Staging] = []
        self.replay = None
        self.calls = self.replays = 0

    def __call__(self, *given: Tensor):
        if self.recorder is None:
            return self.function(*(upload(tensor, self.device) for tensor in given))
        self._load(given)
        with contextlib.ExitStack() as stack:
            for optimizer in self.optimizers:
                if hasattr(optimizer, "count_step"):  # which a replay of its step would not do
                    stack.enter_context(optimizer.count_step())
            return self._call()

    def _call(self):
        if self.replay is not None and self._memory() != self.memory:
            self.replay, self.calls, self.replays = None, 0, 0  # a state was loaded, say
        if self.replay is None:
            self.calls += 1
            if self.calls <= WARM_UP:
                with self.recorder.on_own_stream():
                    return self.function(*self.inputs)
            if not self._record():
                return self.function(*self.inputs)
        for rate, group in zip(self.rates, self._groups(), strict=True):
            rate.fill_(group["lr"])
        self.replays += 1
        if self.replays == 2 or math.log10(self.replays).is_integer():
            return self._compare()
        self.replay()
        return tree_unflatten([tensor.clone() for tensor in self.results], self.form)

    def _load(self, given: tuple[Tensor, ...]):
        """Put the arguments where the kernels read them."""
        if self.inputs is None:
            self.inputs = [torch.empty_like(tensor, device=self.device) for tensor in given]
            self.staging = [Staging(tensor) for tensor in self.inputs]
        for static, tensor in zip(self.inputs, given, strict=True):
            if (tensor.shape, tensor.dtype) != (static.shape, static.dtype):
                was, now = (f"{x.dtype} {tuple(x.shape)}" for x in (static, tensor))
                raise ValueError(f"{self.name}: an argument was {was} and is {now} now")
        for staging, tensor in zip(self.staging, given, strict=True):
            staging.fetch(tensor)

    def _groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _memory(self) -> list:
        """Return what a record has in it for good: numbers of optimizers, and where tensors lie."""
        numbers = [[group.get(name) for name in FIXED_NUMBERS] for group in self._groups()]
        states = [id(optimizer.state) for optimizer in self.optimizers]
        weights = [weight for by_name in self.weights for weight in by_name.values()]
        places = [x.data_ptr() for x in (*weights, *self.read) if x is not None]
        return [numbers, states, places]

    def _state(self) -> list[Tensor]:
        """Return all that a call may change."""
        tensors = [tensor for module in self.modules for tensor in module.state_dict().values()]
        states = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        return [*tensors, *(x for state in states for x in state.values() if torch.is_tensor(x))]

    def _record(self) -> bool:
        """Record the function; return whether that worked."""
        groups, dtype = self._groups(), self.recorder.rate_dtype
        # Kept, so that a state that is loaded later cannot have the id of this one.
        self.states = [optimizer.state for optimizer in self.optimizers]
        self.rates = [torch.zeros((), dtype=dtype, device=self.device) for _ in groups]
        self.memory = self._memory()
        before, cached = [dict(group) for group in groups], torch.is_autocast_cache_enabled()
        # Weights that autocast has cast before are copies, which no later update would reach.
        torch.set_autocast_cache_enabled(False)
        try:
            for group, rate in zip(groups, self.rates, strict=True):
                rate.fill_(group["lr"])
                group |= {"lr": rate, "capturable": True}
            held = [*self._state(), *self.rates, *self.read]
            self.replay, outputs = self.recorder.record(self.function, self.inputs, held)
            self.results, self.form = tree_flatten(outputs)
        except RuntimeError as error:
            # Torch ends a recording that failed with an error of its own, which hides the first.
            cause = error.__context__ or error
            self._give_up(f"it cannot be recorded ({str(cause).splitlines()[0]})")
        finally:
            torch.set_autocast_cache_enabled(cached)
            plain = [[_plain_numbers(group) for group in either] for either in (groups, before)]
            for group, was in zip(groups, before, strict=True):
                group.clear()
                group |= was
        if plain[0] != plain[1] and self.replay is not None:
            self._give_up("it changes numbers of its optimizer, which a replay would not")
        return self.replay is not None

    def _compare(self):
        """Replay, then run the function from the same state; its results are those that count."""
        state = [*self._state(), *self.inputs]
        before = [tensor.clone() for tensor in state]
        self.replay()
        results = [tensor.clone() for tensor in self.results]
        after = [tensor.clone() for tensor in state]
        for tensor, was in zip(state, before, strict=True):
            tensor.copy_(was)
        outputs = self.function(*self.inputs)
        expected = tree_leaves(outputs)
        errors = [
            *(_result_error(*pair) for pair in zip(results, expected, strict=True)),
            *(_change_error(*three) for three in zip(after, state, before, strict=True)),
        ]
        worst = max((math.inf if math.isnan(error) else error for error in errors), default=0.0)
        if worst > TOLERANCE:
            self._give_up(f"replay {self.replays} is off by {worst:.1%} of what the function does")
        return outputs

    def _give_up(self, why: str):
        self.replay = self.recorder = None
        say(f"warning: {self.name} runs without a CUDA graph: {why}", sys.stderr)


def _plain_numbers(group: dict) -> dict:
    """Return the numbers of a group of an optimizer, but for its learning rate."""
    plain = {name: value for name, value in group.items() if isinstance(value, int | float)}
    return {name: value for name, value in plain.items() if name not in ("lr", "capturable")}


def _result_error(one: Tensor, other: Tensor) -> float:
    """Return |one - other| / |other|, Euclidean. Sums that cancel to zero are not compared."""
    one, other = one.double(), other.double()
    scale = max(other.norm().item(), NEAR_ZERO * math.sqrt(other.numel()))
    return (one - other).norm().item() / scale


def _change_error(one: Tensor, other: Tensor, before: Tensor) -> float:
    """Return |one - other| / |other - before|, Euclidean; 0 where the two are the same."""
    one, other, before = one.double(), other.double(), before.double()
    difference = (one - other).norm().item()
    return difference / max((other - before).norm().item(), 1e-300) if difference else 0.0
