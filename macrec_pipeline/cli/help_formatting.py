"""Command and group classes whose help shows no type for flags, which take no value."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command of `macrec`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters in the order of the help."""
        return _hide_types_of_flags(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands of `macrec`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters in the order of the help."""
        return _hide_types_of_flags(super().get_params(ctx))


def _hide_types_of_flags(parameters: list[Any]) -> list[Any]:
    """Remove the `<bool>` that Typer prints after `--help` and every other flag."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters
