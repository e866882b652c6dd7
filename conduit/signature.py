"""The signatures of compiled classes, for `help()`, `inspect.signature` and what is built on it."""

from __future__ import annotations

from collections.abc import Callable

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    import inspect
    from typing import Any


class class_signature:  # noqa: N801 - a decorator, as `property` is one
    """The ``__signature__`` of a class: what the decorated method takes, less ``self``.

    In the ``__init__`` of a compiled class CPython sees only ``*args, **kwargs``. The decorated
    method repeats its parameters and is never called. The signature is made when it is asked for:
    `inspect` takes longer to import than all of conduit.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __get__(self, instance: object, owner: type[Any]) -> inspect.Signature:
        """Return the signature of the class; an instance, which cannot be called, has none."""
        if instance is not None:
            raise AttributeError(f"a {owner.__name__} cannot be called, and has no signature")
        import inspect

        signature = inspect.signature(self._function)
        _, *parameters = signature.parameters.values()
        return signature.replace(parameters=parameters)
