"""config.json of a run folder: what its entries may be, checked before anything uses them."""

from pathlib import Path

from lab.common.files import read_json

NEEDED = {"algorithm": str, "flags": dict, "started": str}
# What may be missing, or null where it was not known; other entries may only be missing.
PROVENANCE_KINDS = {
    "command": str,
    "device": str,
    "processor": str,
    "torch_threads": int,
    "versions": dict,
    "git_commit": str,
    "git_has_changes": bool,
    "started": str,
}
KINDS = PROVENANCE_KINDS | {
    "game": str,
    "variant": str,
    "num_parameters": int,
    "multiply_adds": int,
    "cuda_graphs": bool,
    "finished": int,
    "resumed": list,
}
SESSION_KINDS = PROVENANCE_KINDS | {"step": int}  # of an entry of "resumed"
LARGEST_WHOLE = 2**53  # no entry has a number so large; below, a float tells each from the next
WORDS = {str: "text", bool: "true or false", dict: "an object", list: "a list"}


def read_run_config(path: Path) -> dict:
    """Read the config.json of a run. Raise OSError, or ValueError that names the damaged entry."""
    config = read_json(path)
    for name in NEEDED:
        if name not in config:
            raise ValueError(f"{name} is missing")
    _check(config, NEEDED, "", may_be_null=False)
    check_flags(config["flags"])
    check_kinds(config)
    return config


def check_flags(flags: dict):
    """Raise ValueError for the first flag of a run that is neither text, a number nor null."""
    for name, value in flags.items():
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise ValueError(f"flags: {name} must be text or a number, not {_shorten(value)}")


def check_whole(name: str, value, low: int = 0, high: float = LARGEST_WHOLE):
    """Raise ValueError unless a value is a whole number, at least `low` and below `high`."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not low <= value < high:
        limit = "2**53" if high == LARGEST_WHOLE else f"{high:g}"
        raise ValueError(
            f"{name} must be a whole number, at least {low} and below {limit}, not "
            f"{_shorten(value)}"
        )


def check_kinds(config: dict):
    """Raise ValueError for the first entry of a config.json, or part of one, of another kind."""
    _check(config, KINDS, "")
    for i, session in enumerate(config.get("resumed") or []):
        if not isinstance(session, dict):
            raise ValueError(f"resumed: entry {i} must be an object, not {_shorten(session)}")
        _check(session, SESSION_KINDS, f"resumed, entry {i}: ")


def _check(config: dict, kinds: dict[str, type], where: str, may_be_null: bool = True):
    for name, kind in kinds.items():
        value = config.get(name)
        if name not in config:
            continue
        if value is None and may_be_null and name in PROVENANCE_KINDS:
            continue
        if kind is int:
            check_whole(f"{where}{name}", value)
        elif not isinstance(value, kind):
            raise ValueError(f"{where}{name} must be {WORDS[kind]}, not {_shorten(value)}")
        if name == "versions" and kind is dict:
            _check(value, dict.fromkeys(value, str), f"{where}versions: ")


def _shorten(value) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deeply, or a number of thousands of digits
        return "what is there"
    return text if len(text) <= 60 else f"{text[:60]}…"
