"""A user's mistake on a command line ends in one line that says what is wrong and what to do.

jsonargparse prints the usage, hundreds of options, and then every way in which a value failed to be each of
the types that it could have been. Here its message is boiled down to the option, what was expected, and what
was given.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn
from zipfile import is_zipfile

from lightning.fabric.utilities.exceptions import MisconfigurationException

# What a user can get wrong: a setting, an extra, a path, the rights to it, a full disk.
USER_ERRORS = (MisconfigurationException, ModuleNotFoundError, OSError)

_WAYS_OUT = {  # what others say without a way out: the beginning of it, and the way out
    "No supported gpu backend found": "torch sees no GPU here: leave --trainer.accelerator out",
    "[Errno 13] Permission denied: 'runs'": "(run it in a folder that you may write to)",
}
_NOISE = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Expected a <class 'NoneType'>",
)
_CLASS = re.compile(r"<class '(?:[\w.]+\.)?(\w+)'>|(?:[a-z]\w*\.)+([A-Z]\w*)")


class OneLineErrors:
    """Mixed into a parser of jsonargparse: a mistake ends in one line, not in all options and a list."""

    _reading: Any = None
    _read: tuple[Any, ...] = ()

    def parse_path(self: Any, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Remembers the file, so that what is wrong in it is said to be."""
        self._reading, self._read = path, (*self._read, path)
        try:
            return super().parse_path(path, *args, **kwargs)  # type: ignore[misc]
        finally:
            self._reading = None

    def error(self: Any, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the program with exit status 2; a parser of a nested type raises, as jsonargparse wants it."""
        if not self.exit_on_error or sys.flags.dev_mode or os.environ.get("JSONARGPARSE_DEBUG"):
            super().error(message, ex)  # type: ignore[misc]
        parser = getattr(ex, "subcommand_parser", None) or self
        program, _, command = parser.prog.replace(" [options]", "").partition(" ")
        script = sys.argv[0] if Path(sys.argv[0]).name == program else program
        hint = " ".join(word for word in ("python", script, command, "--help") if word)
        line = one_line(message, _options(self)).removesuffix(".")
        files = [self._reading] if self._reading else _to_blame(parser, line)
        line = ": ".join([str(file) for file in files[:1]] + [line])
        sys.stderr.write(f"{program}: error: {line}; for all options: {hint}\n")
        raise SystemExit(2)


def _to_blame(parser: Any, line: str) -> list[Any]:
    """The files that what is wrong may have come from: the defaults', or those with the unknown option."""
    if line.startswith("Problems parsing config"):
        return list(parser.default_config_files)
    unknown = re.search(r"[Oo]ption '(.*?)'", line)
    if unknown is None or any(unknown[1] in word for word in sys.argv):
        return []
    key = unknown[1].rpartition(".")[2]
    files = [Path(file) for file in (*parser._read, *parser.default_config_files)]
    return [file for file in files if file.is_file() and key in file.read_text()]


@contextmanager
def one_line_errors(*errors: type[Exception], active: bool = True, only_ours: bool = False) -> Iterator[None]:
    """Ends a command line in one line of text where its user made a mistake.

    Args:
        *errors: what such a mistake raises.
        active: False lets everything through, as Python's development mode does (``python -X dev``).
        only_ours: whether only what this package itself raises is a user's mistake.

    Raises:
        SystemExit: with the line.
    """
    try:
        yield
    except errors as error:
        if not active or sys.flags.dev_mode or (only_ours and not _is_ours(error)):
            raise
        line = one_line(str(error))
        way_out = next((text for start, text in _WAYS_OUT.items() if line.startswith(start)), "")
        deliberate = _is_ours(error) or isinstance(error, MisconfigurationException | ValueError)
        where = "" if deliberate else " (python -X dev shows where)"
        program = Path(sys.argv[0]).name
        raise SystemExit(f"{program}: error: {line}{way_out and f' {way_out}'}{where}") from error


def _is_ours(error: Exception) -> bool:
    """Whether the statement that raised it is in this package."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and str(last.tb_frame.f_globals.get("__name__")).startswith(__package__ or "")


def require_at_least(least: int, **numbers: int) -> None:
    """Refuse counts that are too small.

    Raises:
        ValueError: naming the argument.

    Example:
        >>> require_at_least(1, seeds=0)
        Traceback (most recent call last):
        ValueError: seeds=0 must be 1 or more
    """
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name}={number} must be {least} or more")


def check_checkpoint(path: str | Path | None) -> None:
    """Refuse a file or folder that is there and no checkpoint.

    Raises:
        MisconfigurationException: naming the path.
    """
    place = Path(path or "")
    if not path or path in ("best", "last", "hpc") or not place.exists():
        return  # Lightning's keywords, and what it says of by itself
    has_parts = place.is_dir() and bool({"meta.pt", "latest", ".metadata"} & set(os.listdir(place)))
    if not (has_parts or is_zipfile(place)):  # FSDP2 and DeepSpeed write folders
        raise MisconfigurationException(
            f"ckpt_path={path} is no checkpoint: a run's last one is <run>/checkpoints/last.ckpt"
        )


def one_line(message: str, options: Iterable[str] = ()) -> str:
    """What is wrong, in a line.

    Args:
        message: of jsonargparse, or any other.
        options: those that there are, for the nearest to one that there isn't.

    Returns:
        One line: where jsonargparse says which option, what was expected and what was given, only that.

    Example:
        >>> one_line('''Parser key "trainer.max_epochs":
        ...   Does not validate against any of the Union subtypes
        ...   Subtypes: [<class 'int'>, <class 'NoneType'>]
        ...   Errors:
        ...     - Expected a <class 'int'>
        ...     - Expected a <class 'NoneType'>
        ...   Given value type: <class 'str'>
        ...   Given value: three''')
        "trainer.max_epochs: expected int, given 'three'"
        >>> one_line("unrecognized arguments: --data.size=3", ["--data.batch_size", "--seed"])
        'unrecognized arguments: --data.size=3; similar: --data.batch_size'
    """
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    if any(line.startswith(_NOISE) or line.startswith('Parser key "') for line in lines):
        return _of_validation(lines)
    line = " ".join(lines)
    if found := re.match(r"argument (\S+) --> (\S+): .* is not callable", line):
        return f'Linked "{found[2]}" must be given via "{found[1]}"'
    if line.startswith("unrecognized arguments:"):
        unknown = [word.partition("=")[0] for word in line.split() if word.startswith("-")]
        near = dict.fromkeys(name for word in unknown for name in _similar(word, list(options)))
        line += f"; similar: {', '.join(near)}" if near else ""
    return line


def _of_validation(lines: list[str]) -> str:
    """The innermost reasons of the first class that was tried: the rest are other things it could be."""
    where: list[str] = []
    wanted: list[str] = []
    reasons: list[str] = []
    given, classes = "", 0
    for line in lines:
        if found := re.match(r'Parser key "(.*?)":(.*)', line):
            where.append(found[1])
            line = found[2].strip()
        if found := re.match(r"Problem with given class_path '(?:.*\.)?(.*)':", line):
            classes += 1
            if classes > 1:
                break
            where.append(found[1])
            continue
        if reasons and line.startswith("Not a valid subclass"):
            break
        if found := re.match(r"(.*)\. Got value: (.*)", line):
            line, given = found.groups()
        if found := re.match(r"Given value: (?!NestedArg|Namespace)(.*)", line):
            given = given or found[1]
        elif found := re.match(r"Expected a dot import path string|Expected a path but", line):
            wanted.append("a class by name or import path")
        elif found := re.match(r"Expected an? (.*)", line):
            wanted += [] if line.startswith(_NOISE) else [_plain_type(found[1])]
        elif found := re.match(r"Option '(.*)' is not accepted", line):
            reasons.append(f"has no option {found[1]!r}")
        elif line and not line.startswith((*_NOISE, "Given value")):
            reasons.append(line)
    said = "; ".join(dict.fromkeys(reasons)) or "expected " + " or ".join(dict.fromkeys(wanted))
    place = ": ".join([part for part in where if part])
    value = f", given {given!r}" if given and not reasons else ""
    return f"{place}{': ' if place else ''}{said}{value}"


def _plain_type(text: str) -> str:
    if found := re.match(r"typing\.Literal\[(.*)\]", text):
        return f"one of {found[1]}"
    return _CLASS.sub(lambda match: match[1] or match[2], text)


def _options(parser: Any) -> list[str]:
    """Option names of a parser and of its subcommands."""
    actions = [*parser._actions]
    for action in parser._actions:
        for child in (
            (getattr(action, "choices", None) or {}).values() if hasattr(action, "add_subcommand") else ()
        ):
            actions += child._actions
    return [name for action in actions for name in action.option_strings if name.startswith("--")]


def _similar(word: str, options: list[str]) -> list[str]:
    """Options that look alike, by the whole name or by its last part."""
    last = word.rpartition(".")[2].lstrip("-")
    by_last = [name for name in options if last and last in name.rpartition(".")[2]]
    return [*dict.fromkeys([*get_close_matches(word, options, n=2, cutoff=0.75), *by_last])][:3]
