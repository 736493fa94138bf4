"""The errors people see: each is one line that names the value, what is allowed and what to do."""

from __future__ import annotations


class MusictuneError(Exception):
    """Base of every error meant for people; ``exit_code`` is what the command line returns."""

    exit_code = 2


class InputError(MusictuneError):
    """Bad input or usage: a path, a file, an option, a name. Exit code 2."""


class AudioError(InputError):
    """An audio file or array that cannot be used."""


class CheckFailed(MusictuneError):
    """A check of the result failed, such as an adapter that changes nothing. Exit code 1."""

    exit_code = 1
