"""A Zarr store in a folder whose writes are on the disk, whole, when they return. Imports zarr: load it on use."""

from __future__ import annotations

import asyncio
from typing import Any

from zarr.storage import LocalStore

from backlight.evaluation.journal import whole


class DurableStore(LocalStore):
    """Zarr's own renames files into place, but a power cut may still empty them; and a kill leaves its partial ones."""

    async def set(self, key: str, value: Any) -> None:
        """Write one file."""
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        """Write one file, where it is not there: one process at a time makes the arrays."""
        if not (self.root / key).is_file():
            await self.set(key, value)

    def set_sync(self, key: str, value: Any) -> None:
        """Write one file."""
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial:
            partial.write_bytes(value.as_buffer_like())
