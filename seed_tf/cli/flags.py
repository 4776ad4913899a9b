"""absl flags from dataclasses of settings.

A command declares its settings as a frozen dataclass of `setting` fields. Each
command has its own `absl.flags.FlagValues`: two commands may have a flag of the
same name.

This module imports no TensorFlow.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import shlex
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from absl import flags
from absl import logging as _logging  # defines --verbosity

from seed_tf.config import normal_value, setting

Settings = TypeVar("Settings")
Error = flags.Error
QUOTES = "\"'"


class HelpRequested(Exception):  # noqa: N818
    """The user asked for help. The message is the help."""


def repeated(default: tuple, help: str, **constraints: Any) -> Any:
    """A setting whose flag takes one value, and may be repeated.

    A tuple of `setting` takes values separated by commas. Use `repeated` for
    paths, which may contain commas.

    Args:
        default: values if the user gives none.
        help: see `setting`.
        **constraints: see `setting`.
    """
    field = setting(default, help, **constraints)
    field.metadata = types.MappingProxyType({**field.metadata, "repeat": True})
    return field


@dataclasses.dataclass(frozen=True)
class Call(Generic[Settings]):
    """A parsed command line.

    Attributes:
        command: the command's name, `"distill"` or `"search index"`.
        settings: all settings.
        given: the user's values by name.
        arguments: words that are no flags.
        flags: the user's flags as text by name.
    """

    command: str
    settings: Settings
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    flags: Mapping[str, tuple[str, ...]] = dataclasses.field(
        default_factory=dict
    )

    def words(self) -> list[str]:
        """Returns the command line, after the program's name, that goes on.

        The command line does not overwrite what this call has begun.
        """
        given = [
            text
            for name, texts in self.flags.items()
            if name != "overwrite"
            for text in texts
        ]
        return [*self.command.split(), *self.arguments, *given]

    def line(self) -> str:
        """Returns the command line that goes on, to paste into a shell."""
        return shlex.join(["python", "-m", "seed_tf", *self.words()])


@dataclasses.dataclass(frozen=True)
class Command(Generic[Settings]):
    """A command: its settings and its function.

    Attributes:
        settings: a frozen dataclass of `setting` fields with defaults.
        run: function of the parsed command line.
        arguments: name for usage of words that are no flags, `"RUN..."`.
        instead: function of the user's settings that returns a text or None.
            The command prints the text and ends; required flags may be missing.
        resumable: whether the same command resumes after Ctrl-C.
        aliases: the command's flags by arguments of the library that have
            another name.
    """

    settings: Any  # type[Settings]: mypy has no name for "a dataclass"
    run: Callable[[Call[Settings]], None]
    arguments: str = ""
    instead: Callable[[Mapping[str, Any]], str | None] | None = None
    resumable: bool = False
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def as_flags(self, message: str) -> str:
        """Rewrites arguments in a message of the library, see `as_flags`."""
        names = [field.name for field in dataclasses.fields(self.settings)]
        return as_flags(message, names, self.aliases)

    def parse(self, name: str, words: Sequence[str], doc: str) -> Call:
        """Parses a command line.

        Args:
            name: the command's name.
            words: the command line after the name.
            doc: the first part of the help.

        Raises:
            HelpRequested: if the user asked for help.
            absl.flags.Error: if a flag is unknown or missing, or has a bad
                value.
        """
        fields = dataclasses.fields(self.settings)
        kinds = typing.get_type_hints(self.settings)
        values = flags.FlagValues()
        for field in fields:
            _define(values, field, kinds[field.name])
        for name_of_help in ("help", "helpfull"):
            flags.DEFINE_boolean(
                name_of_help,
                False,
                "Show this help."
                if name_of_help == "help"
                else "Show the flags of absl, too.",
                flag_values=values,
            )
        shared = flags.FLAGS.flags_by_module_dict()[_logging.__name__]
        for flag in shared:
            flag.unparse()
            values[flag.name] = flag
        if _asks_for_help(words):
            first = sorted(fields, key=lambda x: not x.metadata["required"])
            shown = [*first, *(shared if "--helpfull" in words else ())]
            raise HelpRequested(self._help(name, doc, shown, kinds))
        _, *arguments = values([name, *words])
        if arguments and not self.arguments:
            raise Error(f"Expected only flags. Received: {arguments[0]!r}.")
        try:
            given = {
                field.name: normal_value(
                    field, _frozen(values[field.name].value)
                )
                for field in fields
                if values[field.name].present
            }
        except ValueError as error:
            raise Error(self.as_flags(str(error))) from error
        if not (self.instead and self.instead(given)):
            self._check_required(given)
        texts = {
            flag.name: _texts(flag)
            for flag in (values[name] for name in values)
            if flag.present
        }
        return Call(
            name, self.settings(**given), given, tuple(arguments), texts
        )

    def _check_required(self, given):
        missing = [
            f"--{field.name}"
            for field in dataclasses.fields(self.settings)
            if field.metadata["required"]
            and given.get(field.name) in (None, "", ())
        ]
        if missing:
            raise Error(f"{' and '.join(missing)} must be given.")

    def _help(self, name, doc, shown, kinds):
        usage = " ".join(filter(None, ("seed-tf", name, self.arguments)))
        parts = [doc.strip(), f"Usage: {usage} [flags]"]
        for each in shown:
            if isinstance(each, dataclasses.Field):
                text = _field_help(each, kinds[each.name])
            else:
                text = f"{each.help} (default: {each.default})"
            parts.append(f"  --{each.name}\n" + _indented(text))
        parts.append("  --helpfull\n" + _indented("Show absl's flags, too."))
        return "\n\n".join(parts[:2]) + "\n\n" + "\n".join(parts[2:])


def as_flags(
    message: str,
    names: Sequence[str],
    aliases: Mapping[str, str] | None = None,
) -> str:
    """Rewrites the arguments that a message of the library names as flags.

    The library writes arguments in backticks: `` `output` `` becomes
    `--output`, `` `overwrite=True` `` becomes `--overwrite`, and
    `` `strategy='one'` `` becomes `--strategy=one`.

    Args:
        message: str.
        names: names of the command's flags.
        aliases: see `Command`.
    """

    def flag(match):
        name, value = match["name"], match["value"]
        name = (aliases or {}).get(name, name)
        if name not in names:
            return match[0]
        if value in (None, "True"):
            return f"--{name}"
        return (
            f"--no{name}"
            if value == "False"
            else f"--{name}={value.strip(QUOTES)}"
        )

    return re.sub(r"`(?P<name>\w+)(?:=(?P<value>[^`]*))?`", flag, message)


def _asks_for_help(words):
    before_end = words[: words.index("--")] if "--" in words else words
    return any(x in ("--help", "-help", "--helpfull") for x in before_end)


def _unwrapped(kind):
    """Returns T of `T | None` or `tuple[T, ...]`, and whether it is a tuple."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = (x for x in typing.get_args(kind) if x is not type(None))
    if typing.get_origin(kind) is tuple:
        return typing.get_args(kind)[0], True
    return kind, False


def _define(values, field, kind):
    kind, several = _unwrapped(kind)
    meta = field.metadata
    parser: flags.ArgumentParser
    if kind is bool:
        flags.DEFINE_boolean(
            field.name, field.default, meta["help"], flag_values=values
        )
        return
    if kind is int:
        parser = flags.IntegerParser(meta["minimum"], meta["maximum"])
    elif kind is float:
        parser = flags.FloatParser(meta["minimum"], meta["maximum"])
    elif meta["choices"]:
        parser = flags.EnumParser(list(meta["choices"]))
    else:
        parser = flags.ArgumentParser()
    serializer: flags.ArgumentSerializer = flags.ArgumentSerializer()
    arguments = (field.name, field.default, meta["help"], values)
    if several and meta.get("repeat"):
        flags.DEFINE_multi(parser, serializer, *arguments)
        return
    if several:
        parser, serializer = _Several(parser), flags.CsvListSerializer(",")
    flags.DEFINE(parser, *arguments, serializer)


class _Several(flags.ArgumentParser):
    """Values separated by commas, as in CSV."""

    def __init__(self, each):
        super().__init__()
        self._each = each

    def parse(self, argument):
        if isinstance(argument, str):
            argument = next(csv.reader(io.StringIO(argument), strict=True), [])
        return [
            self._each.parse(x.strip() if isinstance(x, str) else x)
            for x in argument
        ]

    def flag_type(self):
        return f"comma-separated {self._each.flag_type()}"


def _texts(flag):
    """Returns a flag as on the command line."""
    if isinstance(flag, flags.MultiFlag):
        return tuple(f"--{flag.name}={value}" for value in flag.value)
    return (flag.serialize(),)


def _frozen(value):
    return tuple(value) if isinstance(value, list) else value


def _field_help(field, kind):
    kind, several = _unwrapped(kind)
    meta, default = field.metadata, field.default
    notes = []
    if meta["choices"]:
        notes.append("one of " + ", ".join(meta["choices"]))
    if meta["minimum"] is not None:
        notes.append(f"at least {meta['minimum']}")
    if meta["maximum"] is not None:
        notes.append(f"at most {meta['maximum']}")
    if several:
        repeat = meta.get("repeat")
        notes.append("may be repeated" if repeat else "separated by commas")
    if meta["required"]:
        notes.append("required")
    elif isinstance(default, bool):
        name = field.name if default else f"no{field.name}"
        notes.append(f"default: --{name}")
    elif several and default:
        notes.append(f"default: {','.join(map(str, default))}")
    elif default is not None and not several:
        notes.append(f"default: {default}")
    return f"{meta['help']} ({'; '.join(notes)})" if notes else meta["help"]


def _indented(text):
    indent = 6 * " "
    return textwrap.fill(
        text, 80, initial_indent=indent, subsequent_indent=indent
    )
