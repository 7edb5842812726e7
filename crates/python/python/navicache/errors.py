"""What can go wrong. Texts are Rust's: they name both sides, and the place."""

from __future__ import annotations


class Error(RuntimeError):
    """The computation went wrong, or the machine lacks something. All others are kinds of it.

    ``field`` is the option that it is about, where it is about one.
    """

    field: str | None = None


class RequestError(Error, ValueError):
    """What was asked for makes no sense, for this model or at all."""


class ModelError(Error):
    """A file is not what it should be."""


class MissingError(ModelError, FileNotFoundError):
    """A file or a model is not there."""


class Cancelled(Error):
    """It was asked to stop."""


class Bug(Error):
    """A mistake of ours."""


KINDS: dict[str, type[Error]] = {
    "invalid": RequestError,
    "missing": MissingError,
    "damaged": ModelError,
    "unavailable": Error,
    "failed": Error,
    "cancelled": Cancelled,
    "bug": Bug,
}


def of(kind: str, field: str | None, message: str) -> Error:
    """The exception for a kind of error of the engine's."""
    error = KINDS.get(kind, Error)(message)
    error.field = field
    return error
