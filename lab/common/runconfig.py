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
WORDS = {str: "text", int: "a whole number", bool: "true or false", dict: "an object"}
WORDS |= {list: "a list"}


def read_run_config(path: Path) -> dict:
    """Read the config.json of a run. Raise OSError, or ValueError that names the damaged entry."""
    config = read_json(path)
    for name in NEEDED:
        if name not in config:
            raise ValueError(f"{name} is missing")
    _check(config, NEEDED, "", may_be_null=False)
    for name, value in config["flags"].items():
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise ValueError(f"flags: {name} must be text or a number, not {_shorten(value)}")
    check_kinds(config)
    return config


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
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{where}{name} must be {WORDS[kind]}, not {_shorten(value)}")
        if name == "versions":
            _check(value, dict.fromkeys(value, str), f"{where}versions: ")


def _shorten(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
