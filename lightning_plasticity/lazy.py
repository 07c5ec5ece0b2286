"""Packages whose names are imported on first use, so that one of them never needs another's packages."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, home: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make ``__getattr__`` and ``__dir__`` of a package (PEP 562).

    Args:
        package: its ``__name__``.
        home: public name -> module of the package that defines it.

    Example:
        >>> getattr_, dir_ = lazy_names("lightning_plasticity.data", {"ImageData": "images"})
        >>> getattr_("ImageData").__name__, dir_()
        ('ImageData', ['ImageData'])
    """

    def import_name(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    return import_name, lambda: sorted(home)
