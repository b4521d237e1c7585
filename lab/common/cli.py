"""The command line of every tool: flags parsed and checked, refusals in one line.

Bad input ends in one line that says what is wrong and what would be right, and exit status 2.
"""

import contextlib
import dataclasses
import difflib
import errno
import io
import itertools
import os
import re
import signal
import sys
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import tyro
from tqdm import tqdm

from lab.common.help import Groups, group_flags

# Also what ends a line or reverses it, and halves of characters, which cannot be encoded.
CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
LARGEST_FLAG = 1e18  # no flag takes a number beyond
Hint = Callable[[str], str]


def no_hint(unknown: str) -> str:
    """Return what to type in place of a flag that is not known: nothing."""
    return ""


class UsageError(Exception):
    """Something a user can mend, said in one line: what is wrong and what would be right."""


def describe_os(error: OSError) -> str:
    """Return what the system says of an error, without its number."""
    return error.strerror or str(error)


def escape_controls(text: str, keep: str = "") -> str:
    """Return a text in which what could steer a terminal or turn its lines around is written out.

    Names of files and what stands in them may hold anything. `keep` has characters to leave.
    """
    return CONTROLS.sub(lambda m: m[0] if m[0] in keep else ascii(m[0])[1:-1], text)


def say(text: str, file=None):
    """Print at once; a reader that has gone away (a closed pipe or terminal) ends no run."""
    file = file or sys.stdout
    # RuntimeError: a signal came in the middle of another print.
    with contextlib.suppress(OSError, RuntimeError), tqdm.external_write_mode(file=file):
        text = escape_controls(text, keep="\n\t")
        print(text, file=file, flush=True)  # above a progress bar, if there is one


def plural(number: int, noun: str) -> str:
    """Format a count: 1 run, 2 runs, 1,000 runs."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def program_name() -> str:
    """Return the tool as its user typed it: dqn_atari.py, lab.sweep or hr-sweep."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.origin == sys.argv[0]:  # python -m lab.sweep
        return spec.name.removesuffix(".__main__")
    return Path(sys.argv[0]).name


def launch(main: Callable, args_class: type, groups: Groups | None = None, hint: Hint = no_hint):
    """Parse the command line into `args_class`, run `main(args)` and exit with what it returns.

    `groups` and `hint` are those of `parse_flags`. A `UsageError` and a flag that does not parse
    end in one line on stderr and status 2.
    """
    open_streams()
    for stream in (sys.stdout, sys.stderr):  # where the terminal knows only ASCII
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        require_temporary_folder()
        sys.exit(main(parse_flags(args_class, groups=groups, hint=hint)))
    except UsageError as error:
        say(f"{program_name()}: error: {escape_controls(str(error))}", sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES):
            raise
        path = escape_controls(str(error.filename)[:80])
        say(f"{program_name()}: error: {path}: {describe_os(error)}", sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        flush_streams()


def open_streams():
    """Open the standard streams that were closed at the start, as /dev/null."""
    # Else the next files that are opened get their numbers, and what libraries print.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # as long as the process


def flush_streams():
    """Write what is pending; what cannot be written does not change the exit status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a full disk, or a reader that has gone: Python would end with 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def require_temporary_folder():
    """Raise UsageError if no temporary file can be written: torch needs a folder for them."""
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise UsageError(f"{describe_os(error)}: set TMPDIR to a folder one can write to") from None


def parse_count(text: str) -> int:
    """Return a whole number, also one written as 1e6 or 2.5e3. Raise ValueError for another."""
    with contextlib.suppress(ValueError):
        return int(text)
    if (match := re.fullmatch(r"([+-]?)(\d+)\.?(\d{0,20})[eE]\+?(\d{1,2})", text)) is None:
        raise ValueError(f"{text!r} is no whole number")
    sign, whole, fraction, exponent = match.groups()
    digits = fraction.rstrip("0")
    if len(digits) > int(exponent):
        raise ValueError(f"{text!r} is no whole number")
    return int(f"{sign}{whole}{digits.ljust(int(exponent), '0')}")


def make_registry() -> tyro.constructors.ConstructorRegistry:
    """Return how tyro reads the values of flags: a count may be written as 1e6."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def read_int(type_info):
        if type_info.type is not int:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda words: parse_count(words[0]),
            is_instance=lambda value: isinstance(value, int),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def parse_flags(args_class, argv=None, default=None, groups=None, hint: Hint = no_hint):
    """Parse the command line into the dataclass. Raise UsageError if it does not parse.

    `default`, an instance, has the values of the flags that are not given. `groups`, title -> names
    of flags, are how --help shows them; those that are in none come first. `hint(flag)` says what
    to type in place of a flag that is not known here, or nothing.
    """
    complaint = io.StringIO()
    asked = list(itertools.takewhile("--".__ne__, sys.argv[1:] if argv is None else argv))
    own = {"args": argv, "prog": program_name(), "registry": make_registry()}
    try:
        if {"-h", "--help"} & {*asked}:
            with contextlib.suppress(OSError):  # a reader that has gone away
                tyro.cli(group_flags(args_class, groups or {}), **own)
            sys.exit(0)
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(args_class, default=default, **own)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        # Sections between rules, of which the second says it; in plain ASCII where the terminal is.
        sections = [""]
        for line in complaint.getvalue().splitlines():
            if re.search("─{3}|-{3}", line):
                sections.append("")
            else:
                sections[-1] += " " + line.strip("│| ")
        text = sections[1].strip() if len(sections) > 1 else "the flags do not parse"
        raise UsageError(f"{_simplify(text, args_class, hint)}; --help lists the flags") from None


def _simplify(complaint: str, args_class, hint: Hint) -> str:
    """Put what tyro says of a flag into the words of its user."""
    types = {flag(field.name): str(field.type) for field in dataclasses.fields(args_class)}
    if parsing := re.match(r"Error parsing (--[\w-]+):.*'(.*)'", complaint):
        name, value = parsing.groups()
        whole = "int" in types.get(name, "") and "float" not in types.get(name, "")
        wanted = "a whole number, such as 1000" if whole else "a number, such as 0.001"
        return f"{name} must be {wanted}, not {value!r}"
    if not complaint.startswith("Unrecognized"):
        return complaint
    for unknown in complaint.partition(": ")[2].split(", "):
        if known := hint(unknown.split("=")[0]):
            return f"{complaint} ({known})"
        similar = difflib.get_close_matches(unknown.split("=")[0], types, n=1, cutoff=0.85)
        if similar:
            return f"{complaint} (did you mean {similar[0]}?)"
        switches = [name for name, kind in types.items() if kind in ("bool", str(bool))]
        truths = ("true", "false", "yes", "no", "on", "off", "0", "1")
        if switches and unknown.lower() in truths:
            return f"{complaint} ({switches[0]} and the like take no value)"
    return complaint


def flag(name: str) -> str:
    """Return a field of Args as it is typed: num_envs -> --num-envs."""
    return "--" + name.replace("_", "-")


def at_least(args, low: float, *names: str):
    """Raise UsageError unless each named flag is a number of at least `low`."""
    _require(args, names, f"at least {low}", lambda value: value >= low)


def above(args, low: float, *names: str):
    """Raise UsageError unless each named flag is a number above `low`."""
    _require(args, names, f"above {low}", lambda value: value > low)


def between(args, low: float, high: float, *names: str):
    """Raise UsageError unless each named flag is a number from `low` to `high`, both included."""
    _require(args, names, f"between {low} and {high}", lambda value: low <= value <= high)


def at_most(args, high: float, *names: str):
    """Raise UsageError unless each named flag is a number of at most `high`."""
    _require(args, names, f"at most {high}", lambda value: value <= high)


def below(args, high: float, *names: str):
    """Raise UsageError unless each named flag is a number below `high`."""
    _require(args, names, f"below {high}", lambda value: value < high)


def _require(args, names: tuple[str, ...], condition: str, accept: Callable[[float], bool]):
    for name in names:
        value = getattr(args, name)
        if not abs(value) < LARGEST_FLAG:  # also NaN
            raise UsageError(f"{flag(name)} must be {condition} and below 1e18, not {value}")
        if not accept(value):
            raise UsageError(f"{flag(name)} must be {condition}, not {value}")


def one_of(args, choices, *names: str):
    """Raise UsageError, with the choices, unless each named flag is one of them."""
    for name in names:
        value = getattr(args, name)
        if value not in choices:
            raise UsageError(f"unknown {flag(name)} {value!r}: choose one of {', '.join(choices)}")


def check_folder(args, name: str):
    """Raise UsageError unless a flag names a folder that is there or can be made; make none."""
    value = getattr(args, name)
    if not value:
        raise UsageError(f"{flag(name)} is empty: it must be a folder, such as runs")
    for character in value:
        # What one cannot see, such as a joiner in an emoji, is no reason to refuse a name.
        if unicodedata.category(character) in ("Cs", "Cc", "Zl", "Zp"):
            kind = "no UTF-8" if "\ud800" <= character <= "\udfff" else "a control character"
            raise UsageError(
                f"{flag(name)} {value!r} has {kind} in it: choose a name that can be printed"
            )
    require_writable(Path(value), flag(name))


def named_path(text: str) -> Path:
    """Return a path that ends in a name: for . and .. the folder's own."""
    path = Path(text)
    return path.resolve() if path.name in ("", "..") else path


def require_writable(folder: Path, name: str):
    """Raise UsageError unless a folder, named by a flag, can be written to or made; make none."""
    nearest = folder.absolute()
    try:
        while not nearest.exists():
            nearest = nearest.parent
        with tempfile.TemporaryFile(dir=nearest, buffering=0) as file:  # of no name: nothing stays
            file.write(b"1")
    except OSError as error:
        raise explain_unwritable(folder, name, error) from None


def explain_unwritable(folder: Path, name: str, error: OSError) -> UsageError:
    """Return what to say of a folder, named by a flag, that cannot be written to."""
    return UsageError(f"{name} {folder}: {describe_os(error)}; choose a folder one can write to")
