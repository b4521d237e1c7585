"""Which run goes on, and with which flags: what --resume means."""

import contextlib
import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.common.cli import UsageError, flag, named_path, parse_flags, say
from lab.common.variants import FREE_FLAGS
from lab.training.atari import AtariEnvs, resolve_game
from lab.training.checkpoint import (
    FORMAT,
    Checkpoints,
    describe_version,
    find_memory,
    find_newest_whole,
    has_checkpoint,
    read_newest_footer,
    restore,
)
from lab.training.form import check_filled, check_state
from lab.training.runfolder import (
    find_runs_of,
    in_use,
    read_config,
    select_checkpoint_flags,
    select_deciding_flags,
)


def find_unfinished(args, algorithm: str) -> Path | None:
    """Return the newest run of the same algorithm and flags, below --runs-dir, that can go on.

    Raises UsageError if one of them is in use by another process, which may not have a checkpoint
    yet.
    """
    candidates = []
    for run in find_runs_of(args, algorithm):
        if run.has_finished(args):
            continue
        if run.footer is not None and run.footer.format != FORMAT:
            say(f"{run.folder} is left alone: it was {describe_version(run.footer)}")
            continue
        candidates.append((run.started, run.folder, run.footer is not None))
    for _, folder, _ in candidates:
        if in_use(folder):
            raise UsageError(
                f"{folder}, a run of these flags, is in use by another process: wait for it to "
                "end, or stop it"
            )
    return max((run[:2] for run in candidates if run[2]), default=(None, None))[1]


def same_game(one: str, other: str) -> bool:
    """Return whether both are names of one game."""
    with contextlib.suppress(ValueError):
        return resolve_game(one) == resolve_game(other)
    return False


def load_flags(args_class, folder: Path, config: dict, overrides: dict, asked: str = "--resume "):
    """Return the flags of a run as `args_class`, with `overrides` in place of its own.

    Raises UsageError if they are not those of this version, or of another kind.
    """
    try:
        saved = args_class(**(config["flags"] | overrides))
    except TypeError as error:
        raise UsageError(
            f"{asked}{folder}: its flags are not those of this version ({error}); resume it with "
            f"commit {config.get('git_commit') or 'unknown'}"
        ) from None
    for field in dataclasses.fields(args_class):
        value = getattr(saved, field.name)
        if not isinstance(value, (field.type, int) if field.type is float else field.type):
            raise UsageError(
                f"{asked}{folder}: config.json has {field.name} {value!r}, which is no "
                f"{getattr(field.type, '__name__', field.type)}: put it back"
            )
    return saved


def require_resumable(folder: Path, config: dict, algorithm: str):
    """Raise UsageError unless the run is of this algorithm and has a checkpoint of this version."""
    if config["algorithm"] != algorithm:
        raise UsageError(
            f"--resume {folder}: it is a run of {config['algorithm']}; resume it with "
            f"{config['algorithm']}_atari.py"
        )
    footer = read_newest_footer(folder)
    if footer is None and config.get("finished") and not has_checkpoint(folder):
        raise UsageError(
            f"--resume {folder}: it has finished ({config['finished']:,} agent steps), and the "
            "checkpoints are gone from which it could be made longer"
        )
    if footer is None:
        raise UsageError(f"--resume {folder}: it has no whole checkpoint.pt; start the run anew")
    if footer.format != FORMAT:
        raise UsageError(
            f"--resume {folder}: it was {describe_version(footer)}; resume it with that one, "
            f"commit {config.get('git_commit') or 'unknown'}"
        )


def refuse_contradictions(folder: Path, config: dict, saved, given):
    """Raise UsageError if the flags that are given are not those of the run."""
    contradicting = [
        f"{flag(name)} {value} contradicts the run in {folder}, which has {getattr(saved, name)}"
        for name, value in select_deciding_flags(dataclasses.asdict(given)).items()
        if value not in (getattr(saved, name), config["flags"].get(name))
        and not (name == "env_id" and same_game(value, saved.env_id))
    ]
    if contradicting:
        raise UsageError("; ".join(contradicting) + ": leave it out, or start a new run")
    if given.total_timesteps < saved.total_timesteps:
        raise UsageError(
            f"--total-timesteps {given.total_timesteps} is less than the {saved.total_timesteps} "
            f"of the run in {folder}: it may only be raised"
        )


def resolve_resume(args, algorithm: str):
    """Return the flags to run with: those given or, with --resume, those of that run.

    None if that run has finished. `--resume auto` takes the unfinished run of the same flags, or
    starts a new one. Besides it only --total-timesteps (more than before) and flags that decide no
    number may be given. Raises UsageError, before anything is touched, for a path that is no run of
    this algorithm, has no checkpoint or is of another version, and for a flag that contradicts.
    """
    if not args.resume:
        if "--resume" in sys.argv[1:] or "--resume=" in sys.argv[1:]:  # as "$RUN", which is not set
            raise UsageError("--resume is empty: name the folder of a run, or auto")
        return args
    is_auto = args.resume == "auto"
    folder = find_unfinished(args, algorithm) if is_auto else named_path(args.resume)
    if folder is None:
        say(f"--resume auto: no unfinished run with these flags in {args.runs_dir}; starting anew")
        return dataclasses.replace(args, resume="")
    config = read_config(folder)
    require_resumable(folder, config, algorithm)
    overrides = {"resume": str(folder), "runs_dir": str(folder.parent)}
    if (
        config["flags"].get("device") == "auto"
    ):  # keep what auto chose at the start, also on another machine
        overrides["device"] = "cpu" if config.get("device", "cpu") == "cpu" else "cuda"
    saved = load_flags(type(args), folder, config, overrides)
    if is_auto:
        changeable = set(FREE_FLAGS) - {"resume", "runs_dir"}
        given = dataclasses.replace(saved, **{name: getattr(args, name) for name in changeable})
    else:
        given = parse_flags(type(args), default=saved)
    refuse_contradictions(folder, config, saved, given)
    step = read_newest_footer(folder).step
    if step >= given.total_timesteps:
        longer = "to train longer, give a larger --total-timesteps"
        say(f"{folder} has finished: {step:,} agent steps; {longer}")
        return None
    find_newest_whole(folder, select_checkpoint_flags(config["flags"]))
    overrides["env_id"] = saved.env_id  # keep the run's own spelling of the game
    return dataclasses.replace(given, **overrides)


def load_parts(checkpoints: Checkpoints, parts: dict) -> tuple[dict, list[str]]:
    """Bring the parts back to the newest whole checkpoint, once all in it has been checked.

    Returns what is saved of the run beside them, and what was damaged of a newer checkpoint. Raises
    UsageError if none is whole, or if it is not that of such parts.
    """
    memory = find_memory(parts)
    state, problems = checkpoints.load(memory)
    try:
        check_state(state, parts, checkpoints.step)
        if memory is not None:
            games = next(part for part in parts.values() if isinstance(part, AtariEnvs))
            num_actions = int(games.single_action_space.n)
            name = next(name for name, part in parts.items() if part is memory)
            check_filled(memory, state[name], checkpoints.segments, num_actions)
        # In a thread: the emulator's calls can take long, and signals come to this one.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(restore, parts, state).result()
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise UsageError(
            f"--resume {checkpoints.folder}: its checkpoint does not fit: {said}"
        ) from None
    return state, problems


def add_resumption(folder: Path, now: dict, step: int) -> dict:
    """Return config.json of a run that goes on from this step; where and how is added to it.

    `now` describes the run as it goes on (`describe`).
    """
    config = read_config(folder)
    config["flags"]["total_timesteps"] = now["flags"]["total_timesteps"]
    config.pop("finished", None)
    kept = ("command", "git_commit", "git_has_changes", "device", "cuda_graphs", "processor")
    kept += ("torch_threads", "versions", "started")
    config.setdefault("resumed", []).append({"step": step} | {name: now[name] for name in kept})
    return config
