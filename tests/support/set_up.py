"""A set-up of several steps, whole or not at all."""

from abc import ABC, abstractmethod
from contextlib import AsyncExitStack
from typing import Self, override


class SetUp(AsyncExitStack, ABC):
    """Sets up what enters the stack; what has begun is ended when the rest cannot begin."""

    @override
    async def __aenter__(self) -> Self:
        try:
            await self._set_up()
        except BaseException:
            await self.aclose()
            raise
        return self

    @abstractmethod
    async def _set_up(self) -> None:
        """Begin everything."""
