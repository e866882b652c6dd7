"""What ``with`` closes: the base of the classes that have descriptors."""

from __future__ import annotations

from conduit.mistakes import not_picklable

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    from typing import Self


class Closing:
    """What ``with`` closes at the end. The compiled classes copy these methods."""

    # With those of the classes: what is set by mistake, such as a timeout, is an error.
    __slots__ = ("__weakref__",)

    def close(self) -> None:
        """Close what this object owns; each class overrides it."""

    def __reduce__(self) -> str:
        raise not_picklable(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
