"""The form of a checkpoint: kinds, shapes and ranges of all that is loaded, checked before use.

A checksum says that a file is as it was written, not that a run of these flags has written it.
Every function here raises ValueError that says in one line what is wrong.
"""

import io
import pickletools
import re
import zipfile

import numpy as np
import torch
from torch import Tensor, nn

from lab.common.files import EVENT_FILE
from lab.training.atari import AtariEnvs
from lab.training.frames import FRAME_SHAPE, OBS_SHAPE, RecentObs
from lab.training.logger import Means
from lab.training.replay import ReplayBuffer

# All that a checkpoint is pickled with, beside plain values.
GLOBALS = re.compile(r"torch \w+Storage|torch\._utils _rebuild_tensor_v2|collections OrderedDict")
SEGMENT_NAME = re.compile(r"\d{5,}-\d+(-[0-9a-f]{8})?\.bin")
LARGEST = 2**53  # of counts
LONGEST = 1000  # characters of a text
# Of an optimizer's settings, these are no function of the flags: its rate may be annealed, its
# steps are counted, and a GPU may record it.
CHANGING = ("lr", "steps", "capturable")


def require_plain(content: bytes):
    """Refuse an archive of torch that holds more than tensors and plain values, or unpacks to more.

    torch.load with weights_only runs no code; this keeps it from taking memory at a file's will.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or sum(entry.file_size for entry in entries) > len(content):
                raise ValueError("it is compressed")
            for entry in entries:
                if entry.filename.endswith("data.pkl"):
                    _require_plain_pickle(archive.read(entry))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError):
        raise ValueError("it is no archive of torch") from None


def _require_plain_pickle(content: bytes):
    for operation, argument, _ in pickletools.genops(content):
        named = operation.name in ("GLOBAL", "INST")
        if operation.name == "STACK_GLOBAL" or (named and not GLOBALS.fullmatch(argument)):
            raise ValueError("it names a function")


def check_content(content):
    """Check what a checkpoint file holds, but for the states in it."""
    if not isinstance(content, dict) or not {"number", "segments", "state"} <= content.keys():
        raise ValueError("it holds something else")
    _check_number(content["number"], "number", 0, LARGEST)
    _check_kind(content["state"], dict, "state")
    mark, flags = content.get("mark", "00000000"), content.get("flags", {})
    if not (isinstance(mark, str) and re.fullmatch("[0-9a-f]{8}", mark)):
        raise ValueError("its mark is none")
    _check_kind(flags, dict, "flags")
    for name, value in flags.items():
        is_text = isinstance(value, str) and len(value) <= LONGEST
        if not (isinstance(name, str) and (is_text or isinstance(value, int | float | None))):
            raise ValueError("its flags are not texts and numbers")
    _check_kind(content["segments"], dict, "segments")
    for index, segment in content["segments"].items():
        _check_number(index, "number of a segment", 0, LARGEST)
        _check_kind(segment, list, "a segment")
        name, checksum = segment if len(segment) == 2 else (None, None)
        if not (isinstance(name, str) and SEGMENT_NAME.fullmatch(name)):
            raise ValueError("a segment has no name that a run gives")
        _check_number(checksum, "checksum of a segment", 0, 2**32 - 1)


def check_state(state: dict, parts: dict, step: int):
    """Check the states of these parts, and of the run itself at this agent step."""
    _check_kind(state.get("step"), int, "step")
    if state["step"] != step:
        raise ValueError(f"step must be {step:,}, as its last line says")
    for name, part in parts.items():
        if name not in state:
            raise ValueError(f"{name} is missing")
        check_part(name, part, state[name])
    check_run(state.get("run"))


def check_part(name: str, part, state):
    """Check the state of a part: a network, an optimizer, a random generator, games, a memory."""
    if isinstance(part, torch.Generator):
        _check_like(state, part.get_state(), name)
    elif isinstance(part, np.random.Generator):
        _check_generator(name, part, state)
    elif isinstance(part, torch.optim.Adam):
        _check_optimizer(name, part, state)
    elif isinstance(part, AtariEnvs):
        _check_games(name, part, state)
    elif isinstance(part, ReplayBuffer):
        _check_memory(name, part, state)
    elif isinstance(part, Means):
        _check_means(name, state)
    elif isinstance(part, nn.Module | RecentObs):
        _check_like(state, part.state_dict(), name)
    if isinstance(part, RecentObs):
        _check_number(state["seen"], f"{name}.seen", 0, LARGEST)


def check_run(state):
    """Check what a run keeps of itself beside its parts."""
    like = {"returns": [], "measurements": 0, "layer": "", "elapsed": 0.0, "events": {}}
    _check_keys(state, like, "run")
    for name, value in like.items():
        _check_kind(state[name], type(value), f"run.{name}")
    _check_number(state["measurements"], "run.measurements", 0, LARGEST)
    if len(state["returns"]) > 100 or not all(map(_is_finite, state["returns"])):
        raise ValueError("run.returns must be up to 100 numbers")
    if not state["layer"].isprintable() or len(state["layer"]) > LONGEST:
        raise ValueError("run.layer must be a short text")
    if not 0 <= state["elapsed"] < LARGEST:
        raise ValueError("run.elapsed must be a number of seconds")
    for name, size in state["events"].items():
        # Older checkpoints name whatever began like an event file.
        if not isinstance(name, str) or "/" in name or not name.startswith("events.out.tfevents."):
            raise ValueError("run.events must have names of event files")
        _check_number(size, "size of an event file", 0, LARGEST)


def own_event_files(sizes: dict[str, int]) -> dict[str, int]:
    """Return those of the files that a run has written itself."""
    return {name: size for name, size in sizes.items() if EVENT_FILE.fullmatch(name)}


def check_filled(memory: ReplayBuffer, state: dict, segments: dict, num_actions: int):
    """Check a replay memory that was filled from these segments, and the rest of its state."""
    newest, size = state["position"], state["size"]
    # With the rows that the stacks of the oldest transitions reach back to. Beyond its last row the
    # ring goes on at row 0; there may be nothing before row 0 yet.
    rows = np.arange(newest - size - 3, newest + 1)
    rows = rows % memory.rows if newest < size else rows[rows >= 0]
    if missing := {*(rows // memory.segment_rows).tolist()} - segments.keys():
        raise ValueError(f"segment {min(missing)} of the memory is missing")
    played = rows[-size - 1 : -1]
    flags = (memory.terminations[played], memory.truncated[played])
    if any((flag.view(np.uint8) > 1).any() for flag in flags):
        raise ValueError("the memory has ends of games that are neither true nor false")
    if (memory.actions[played] >= num_actions).any():
        raise ValueError(f"the memory has actions beyond the {num_actions} of the game")
    if not (np.abs(memory.rewards[played]) <= 1).all():  # also NaN
        raise ValueError("the memory has rewards beyond 1")
    stored = rows[-size - 1 :]
    before = np.minimum(stored, 3) if size < memory.capacity else np.full(len(stored), 3)
    if (memory.history[stored] > before[:, None]).any():
        raise ValueError("the memory has stacks of frames that are not there")
    for row, env in zip(*np.nonzero(memory.truncated[played]), strict=True):
        if int(played[row]) * memory.num_envs + int(env) not in state["final_frames"]:
            raise ValueError("the memory lacks the last frame of a truncated game")


def _check_memory(name: str, memory: ReplayBuffer, state):
    _check_keys(state, {"position": 0, "size": 0, "final_frames": {}}, name)
    _check_number(state["position"], f"{name}.position", 0, memory.rows - 1)
    _check_number(state["size"], f"{name}.size", 0, memory.capacity)
    if state["size"] < memory.capacity and state["size"] != state["position"]:
        raise ValueError(f"{name}.size must be its position while it fills")
    frames = state["final_frames"]
    _check_kind(frames, dict, f"{name}.final_frames")
    if len(frames) > len(memory.free) + len(memory.final_at):
        raise ValueError(f"{name} has too many final frames")
    for transition, frame in frames.items():
        last = memory.rows * memory.num_envs - 1
        _check_number(transition, f"{name}: place of a final frame", 0, last)
        _check_like(frame, torch.empty(FRAME_SHAPE, dtype=torch.uint8), f"{name}: final frame")


def _check_games(name: str, games: AtariEnvs, state):
    count, whole = games.num_envs, torch.zeros(games.num_envs, dtype=torch.int64)
    like = {
        "game": "",
        "num_envs": 0,
        "sticky_actions": 0.0,
        "max_steps": 0,
        "seed": 0,
        "obs": torch.zeros(count, *OBS_SHAPE, dtype=torch.uint8),
        "press_fire": whole.bool(),
        "returns": whole.double(),
    }
    like |= dict.fromkeys(("seeds", "reseeds", "log_lengths", "lengths", "game_start"), whole)
    _check_keys(state, like | {"actions": None}, name)
    for key, value in like.items():
        _check_like(state[key], value, f"{name}.{key}")
    _check_number(state["seed"], f"{name}.seed", 0, 2**31 - 1 - count)
    most = {"seeds": 2**31 - 1, "reseeds": 2**31 - 1, "log_lengths": games.longest_log - 1}
    for key, high in (most | {"lengths": state["max_steps"], "game_start": LARGEST}).items():
        if not ((state[key] >= 0) & (state[key] <= high)).all():
            raise ValueError(f"{name}.{key} must lie between 0 and {high:,}")
    played = torch.empty(int(state["log_lengths"].sum()), dtype=torch.uint8)
    _check_like(state["actions"], played, f"{name}.actions")
    num_actions = int(games.single_action_space.n)
    if (state["actions"] >= num_actions).any():  # would hang the emulator
        raise ValueError(f"{name}.actions must lie between 0 and {num_actions - 1}")


def _check_optimizer(name: str, optimizer: torch.optim.Adam, state):
    like = optimizer.state_dict()
    _check_keys(state, like, name)
    _check_kind(state["param_groups"], list, f"{name}.param_groups")
    if len(state["param_groups"]) != len(like["param_groups"]):
        raise ValueError(f"{name} must have {len(like['param_groups'])} groups of parameters")
    for group, like_group in zip(state["param_groups"], like["param_groups"], strict=True):
        _check_kind(group, dict, f"{name}.param_groups")
        for key, value in like_group.items():
            wanted = list(value) if isinstance(value, tuple) else value
            if key not in group:
                raise ValueError(f"{name} lacks {key}")
            if key not in CHANGING and not (
                isinstance(group[key], type(wanted)) and group[key] == wanted
            ):
                raise ValueError(f"{name}.{key} must be {wanted!r}, as the flags have it")
        if not (_is_finite(group["lr"]) and group["lr"] >= 0):
            raise ValueError(f"{name}.lr must be a number of at least 0")
        if "steps" in like_group:
            _check_number(group["steps"], f"{name}.steps", 0, LARGEST)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _check_kind(state["state"], dict, f"{name}.state")
    if state["state"] and state["state"].keys() != set(range(len(parameters))):
        raise ValueError(f"{name}.state must be of all {len(parameters)} parameters, or of none")
    for index, moments in state["state"].items():
        where, parameter = f"{name}.state.{index}", parameters[index].detach()
        same = {"exp_avg": parameter, "exp_avg_sq": parameter}
        _check_like(moments, {"step": torch.zeros(())} | same, where)
        if moments["step"] < 0 or (moments["exp_avg_sq"] < 0).any():
            raise ValueError(f"{where} must not be below 0")


def _check_generator(name: str, generator: np.random.Generator, state):
    like = generator.bit_generator.state
    _check_like(state, like, name)
    if state["bit_generator"] != like["bit_generator"]:
        raise ValueError(f"{name} must be a {like['bit_generator']}")
    for key in ("state", "inc"):
        _check_number(state["state"][key], f"{name}.{key}", 0, 2**128 - 1)
    _check_number(state["has_uint32"], f"{name}.has_uint32", 0, 1)
    _check_number(state["uinteger"], f"{name}.uinteger", 0, 2**32 - 1)


def _check_means(name: str, state):
    _check_kind(state, dict, name)
    for tag, values in state.items():
        if not (isinstance(tag, str) and re.fullmatch(r"losses/\w{1,99}", tag)):
            raise ValueError(f"{name} must have tags of losses")
        _check_kind(values, list, f"{name}.{tag}")
        for value in values:
            _check_like(value, torch.zeros(()), f"{name}.{tag}")


def _check_like(value, like, name: str):
    """Require the kind of `like`, its keys, shape and dtype; floats are finite."""
    if isinstance(like, Tensor):
        if not (
            isinstance(value, Tensor)
            and (value.dtype, value.shape, value.layout) == (like.dtype, like.shape, torch.strided)
        ):
            raise ValueError(f"{name} must be {_describe(like)}, not {_describe(value)}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{name} has NaN or inf")
    elif isinstance(like, dict):
        _check_keys(value, like, name)
        for key, item in like.items():
            _check_like(value[key], item, f"{name}.{key}")
    else:
        _check_kind(value, type(like), name)
        if isinstance(like, float) and not _is_finite(value):
            raise ValueError(f"{name} is NaN or inf")


def _check_keys(value, like: dict, name: str):
    _check_kind(value, dict, name)
    if missing := [key for key in like if key not in value]:
        raise ValueError(f"{name} lacks {missing[0]}")
    if len(value) != len(like):
        raise ValueError(f"{name} has more than {', '.join(map(str, like))}")


def _check_kind(value, kind: type, name: str):
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        what = "a whole number" if kind is int else f"a {kind.__name__}"
        raise ValueError(f"{name} must be {what}, not {_describe(value)}")


def _check_number(value, name: str, low: int, high: int):
    _check_kind(value, int, name)
    if not low <= value <= high:
        raise ValueError(f"{name} must lie between {low} and {high}")


def _is_finite(value) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 1e30  # also of an int that no float can hold


def _describe(value) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__
