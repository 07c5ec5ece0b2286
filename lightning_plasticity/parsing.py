"""Parsers of command lines: LightningCLI's with plain functions as subcommands, and one function's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from lightning_plasticity.mistakes import USER_ERRORS, OneLineErrors, one_line_errors


class RecipeParser(OneLineErrors, LightningArgumentParser):
    """LightningCLI's parser, whose subcommands include plain functions."""

    def __init__(
        self,
        *args: Any,
        commands: Mapping[str, Callable[..., Any]] | None = None,
        linked: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._commands = commands or {}  # jsonargparse makes parsers of this class for nested types too
        self._linked = {} if linked is None else linked

    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        """Adds LightningCLI's own, then the functions."""
        action = super().add_subcommands(*args, **kwargs)
        for name, function in self._commands.items():
            summary = (function.__doc__ or "").strip().partition("\n")[0]
            action.add_subcommand(name, command_parser(function, summary), help=summary)
        return action

    def link_arguments(self, source: Any, target: str, *args: Any, **kwargs: Any) -> None:
        """Remembers links into a class that is chosen: jsonargparse drops what is given there in silence."""
        super().link_arguments(source, target, *args, **kwargs)
        if ".init_args." in target:
            self._linked |= dict.fromkeys((target, target.replace(".init_args", "")), source)


def command_parser(function: Callable[..., Any], summary: str) -> Any:
    """The parser of a function's arguments, from their hints and its docstring."""
    from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

    parser = _plain_parser()(description=summary)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Path to a configuration file.")
    parser.add_function_arguments(function)
    return parser


def _plain_parser() -> type[Any]:
    from jsonargparse import ArgumentParser

    return type("Parser", (OneLineErrors, ArgumentParser), {})


def require_jsonargparse() -> None:
    """Say which extra is missing.

    Raises:
        ModuleNotFoundError: if jsonargparse is, or what it reads docstrings with.
    """
    if find_spec("jsonargparse") is None or find_spec("docstring_parser") is None:
        raise ModuleNotFoundError("recipes need jsonargparse: pip install 'lightning-plasticity[recipes]'")


def run_function(function: Callable[..., Any], script: str | Path) -> Any:
    """Runs a recipe that is one plain function: its arguments, their help and its description come from it.

    Args:
        function: What to run; its arguments are parsed by their type hints.
        script: The recipe's own path, `__file__`; a YAML file of the same name beside it holds its defaults.

    Returns:
        What the function returns.

    Raises:
        SystemExit: With one line of text, if the command line ends in an error that its user can mend.
    """
    with one_line_errors(*USER_ERRORS, ValueError):
        require_jsonargparse()
        from jsonargparse import auto_cli

        defaults = [str(Path(script).with_suffix(".yaml"))]
        return auto_cli(
            function, parser_class=_plain_parser(), as_positional=False, default_config_files=defaults
        )
