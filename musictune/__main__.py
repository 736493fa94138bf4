"""The command line: every file in ``verbs`` is one command, errors are one line each."""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Annotated, Any, cast

import typer

from musictune import console, verbs
from musictune.errors import MusictuneError
from musictune.files import readable

# Typer carries its own copy of click's exceptions in some releases and click's in others; either
# way these are the bases of the one it exports.
_UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])

_Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no remarks.")]
_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_PANELS = {
    "Everyday": ("demo", "prepare", "tune", "generate", "classify", "serve", "evaluate")
    + ("merge", "export", "doctor"),
    "Preferences": ("listen", "votes", "reward", "align"),
    "Making a base model": ("compose", "pretrain"),
    "Measuring": ("bench", "overlap"),
}


def build() -> typer.Typer:
    """The application with one command per module in ``musictune.verbs``."""
    app = typer.Typer(
        name="musictune",
        help="Teach a pretrained text-to-music model your sound, and measure whether it worked.",
        epilog="First steps: musictune demo --out out/demo",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    _add_commands(app, verbs)
    return app


def _add_commands(app: typer.Typer, package: ModuleType) -> None:
    """Each module of ``package`` is a command, each package in it a group of them."""
    panels = {verb: panel for panel, group in _PANELS.items() for verb in group}
    order = list(panels)
    found = [module.name for module in pkgutil.iter_modules(package.__path__)]
    for name in sorted(found, key=lambda n: (order.index(n) if n in order else len(order), n)):
        module = importlib.import_module(f"{package.__name__}.{name}")
        if hasattr(module, "__path__"):
            group = typer.Typer(help=module.__doc__, no_args_is_help=True)
            _add_commands(group, module)
            app.add_typer(group, name=name, rich_help_panel=panels.get(name))
            continue
        function = getattr(module, name)
        app.command(name, rich_help_panel=panels.get(name))(_with_globals(function))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a letter must not end a run that is done.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:
    try:
        return build()(arguments, prog_name="musictune", standalone_mode=False) or 0
    except _UsageError as error:
        return _complain(error.format_message(), 2)  # type: ignore[attr-defined]
    except MusictuneError as error:
        return _complain(str(error), error.exit_code, arguments)
    except (KeyboardInterrupt, typer.Abort) as error:
        return _complain(str(error) or "interrupted", 130, arguments)
    except PermissionError as error:
        # Not known here: whether it was to be read or written.
        message = f"no permission for {error.filename}; check its owner and mode"
        return _complain(message, 2, arguments)
    except OSError as error:
        if error.errno is None:  # not the system's: a shared library that does not load
            return _complain(_unforeseen(error), 2, arguments)
        where = error.filename or "the output"
        return _complain(str(readable(error, where)), 2, arguments)
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _complain(_unforeseen(error), 2)


def _complain(message: str, code: int, arguments: Sequence[str] = ()) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    line = " ".join(message.split())
    print(f"musictune: error: {line}", file=sys.stderr)  # noqa: T201
    return code


def _unforeseen(error: Exception) -> str:
    """A package that is broken, or else a mistake of ours."""
    if isinstance(error, (ImportError, RuntimeError, OSError)):
        from musictune.verbs.doctor import broken_packages

        if broken := broken_packages():
            return broken[0]
    tried = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
    if tried or isinstance(error, MemoryError):
        wanted = f" for {tried[1]} at once" if tried else ""
        return f"not enough memory{wanted}; use fewer, shorter or smaller: batch, seconds, sizes"
    reason = f"{type(error).__name__}: {error}".strip(": ")
    return f"unforeseen {reason[:300]}; run it again with --debug and report what that shows"


def _version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import version

    print(f"musictune {version('musictune')}")  # noqa: T201
    raise typer.Exit()


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Teach a pretrained text-to-music model your sound, and measure whether it worked."""


def _with_globals(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with ``--quiet`` and ``--debug`` behind its own options."""

    @functools.wraps(function)
    def command(*, quiet: bool = False, debug: bool = False, **options: Any) -> None:
        console.set_quiet(quiet)
        try:
            function(**options)
        except KeyboardInterrupt as error:
            # Typer would drop what it says.
            raise typer.Abort(str(error)) from error

    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.signature(function, eval_str=True)
    own = [p.replace(kind=keyword) for p in signature.parameters.values()]
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            *own,
            inspect.Parameter("quiet", keyword, default=False, annotation=_Quiet),
            inspect.Parameter("debug", keyword, default=False, annotation=_Debug),
        ],
        return_annotation=None,
    )
    command.__annotations__ = {p.name: p.annotation for p in own} | {
        "quiet": _Quiet,
        "debug": _Debug,
    }
    return command


if __name__ == "__main__":
    main()
