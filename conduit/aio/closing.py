"""What ``async with`` closes: the base of all classes of this package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from conduit.mistakes import not_picklable


class Closing(ABC):
    """What ``async with`` closes at the end."""

    # With those of the classes: what is set by mistake, such as a timeout, is an error.
    __slots__ = ("__weakref__",)

    def __reduce__(self) -> str:
        raise not_picklable(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    @abstractmethod
    async def aclose(self) -> None:
        """Close it."""
