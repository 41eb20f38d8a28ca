"""A small disk for the Outbox, so that it can be full."""

from contextlib import suppress
import os
from pathlib import Path
import subprocess
from typing import Self

_SIZE = "160m"
_STEP = 1024 * 1024


class Disk:
    """A file system of its own at a folder, where that is allowed; else the folder is an ordinary one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mounted = False
        """Whether it has its own size, so that it can be filled."""

    def __enter__(self) -> Self:
        self.folder.mkdir()
        if not os.geteuid():
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", self.folder], capture_output=True, check=False
            )
            self.mounted = done.returncode == 0
        return self

    def __exit__(self, *_: object) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", self.folder], check=True)

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"

    def fill(self) -> None:
        """Leave nothing of it."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (_STEP, 4096):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free(self) -> None:
        """Give the space back."""
        self._filler.unlink(missing_ok=True)
