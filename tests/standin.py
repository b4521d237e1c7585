"""A CUDA graph on the CPU, for tests: it records operations once and replays them, without Python.

What a GPU would get wrong in silence is wrong here, too: a number that Python worked out is in the
record, a tensor that the record reads is read again at its old place, nothing is computed while it
is recorded, and results appear in the same memory each time. What a GPU refuses, or what could go
wrong only later (random numbers, tensors that come from elsewhere), raises RuntimeError.
"""

import contextlib

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HOST = ("numpy", "tolist", "cpu", "__array__", "item", "__bool__", "__float__", "__int__")
FORBIDDEN = {  # tags of operations, and why a recording refuses them
    torch.Tag.nondeterministic_seeded: "draws at random",
    torch.Tag.data_dependent_output: "asks the device for a number",
    torch.Tag.dynamic_output_shape: "has a result whose shape depends on numbers",
}


def tensors(nest):
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, torch.Tensor)]


def place(tensor):
    return tensor.untyped_storage().data_ptr()


class Problems(list):
    """Collected, or raised at once: what a recording on a GPU refuses."""

    def __init__(self, strict=True):
        super().__init__()
        self.strict = strict

    def __call__(self, text):
        if text not in self:
            self.append(text)
        if self.strict:
            raise RuntimeError(text)


class HostCalls(TorchFunctionMode):
    """Calls that wait for the device, which the dispatcher does not see on the CPU."""

    def __init__(self, problems):
        super().__init__()
        self.problems = problems

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in HOST or func in (torch.from_numpy, torch.tensor, torch.as_tensor):
            self.problems(f"{name} takes numbers between host and device")
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """Operations, with the tensors that they read and write, as they are carried out."""

    def __init__(self, static, problems):
        super().__init__()
        self.steps, self.problems = [], problems
        self.static = {place(tensor) for tensor in static}
        self.made, self.untouched = set(), {}  # by place; what was there before a recorded write

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        for tag, why in FORBIDDEN.items():
            if tag in func.tags and not (name == "aten::empty" or "profiler" in name):
                self.problems(f"{name} {why}")
        given = tensors((args, kwargs))
        self.static |= {place(tensor) for tensor in given if isinstance(tensor, nn.Parameter)}
        for tensor in given:
            if place(tensor) not in self.static | self.made and tensor.numel():
                shape = tuple(tensor.shape)
                self.problems(f"{name} reads a tensor {shape} that is no argument and no state")
            if place(tensor) not in self.made and place(tensor) not in self.untouched:
                self.untouched[place(tensor)] = (tensor, tensor.untyped_storage().clone())
        out = func(*args, **kwargs)
        places = {place(tensor) for tensor in given}
        fresh = [tensor for tensor in tensors(out) if place(tensor) not in places]
        self.made |= {place(tensor) for tensor in fresh}
        if not func.is_view:
            self.steps.append((func, args, kwargs, out, fresh))
        return out

    def put_back(self):
        """A recording computes nothing: all is as it was, and results are not there yet."""
        for tensor, content in self.untouched.values():
            tensor.untyped_storage().copy_(content)
        for *_, fresh in self.steps:
            for tensor in fresh:
                if tensor.is_floating_point():
                    tensor.fill_(float("nan"))

    def replay(self):
        with torch._C._AutoDispatchBelowAutograd(), torch.autocast("cpu", enabled=False):
            for func, args, kwargs, out, fresh in self.steps:
                again = tensors(func(*args, **kwargs))
                for tensor, new in zip(tensors(out), again, strict=True):
                    if any(tensor is one for one in fresh):
                        tensor.copy_(new)


class StandIn:
    """In the place of `CudaRecorder`: `monkeypatch.setattr(graphs, "make_recorder", StandIn)`."""

    rate_dtype = torch.float64  # so that the CPU's kernels get the very number

    def __init__(self, device, strict=True, static=()):
        self.problems, self.static, self.recorded = Problems(strict), list(static), 0

    @contextlib.contextmanager
    def on_own_stream(self):
        yield

    def record(self, function, inputs, held):
        tape = Tape([*inputs, *held, *self.static], self.problems)
        try:
            with HostCalls(self.problems), tape:
                outputs = function(*inputs)
        finally:
            with torch.no_grad():
                tape.put_back()
        self.recorded += 1
        self.tape = tape
        return tape.replay, tree_map(lambda tensor: tensor, outputs)
