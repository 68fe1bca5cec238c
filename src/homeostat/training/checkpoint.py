"""Checkpoints of a running fit: written after every epoch, complete or absent, never executed when read.

A checkpoint directory holds the two newest checkpoints as safetensors files and `checkpoints.json`, which names them
with their sha256. Each file is written under a temporary name and renamed; the manifest's own rename is the commit
point. A process that is killed loses at most the epoch it was in. A power cut can also lose what the disk had not
written yet: files are forced to the disk at most once a second, because an epoch of a small net lasts milliseconds and
an fsync longer. A file that does not match its sum is passed over with a warning, in favor of the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from homeostat.errors import HomeostatError
from homeostat.failpoints import reach

MANIFEST = "checkpoints.json"
_SYNC_EVERY_S = 1.0


class Checkpoints:
    """The checkpoints of one fit in one directory, which is made when the first is saved."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self._synced = 0.0

    def prepare(self) -> None:
        """Make the directory, and see that it can be written: before the first epoch, not after it.

        Raises: HomeostatError if it cannot, with the cause.
        """
        with self._writable():
            self.directory.mkdir(parents=True, exist_ok=True)
            probe = self.directory / f".{MANIFEST}.probe"
            try:
                probe.write_bytes(b"\0")
            finally:
                probe.unlink(missing_ok=True)

    def save(self, epoch: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Keep `tensors` (any names and shapes) and `state` (JSON) as the checkpoint after `epoch`.

        Raises: HomeostatError if the directory cannot be written, with the cause.
        """
        durable = time.monotonic() - self._synced >= _SYNC_EVERY_S
        # safetensors wants contiguous tensors that share no memory; layouts are restored by the owner's copy_.
        plain = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        content = safetensors.torch.save(plain, metadata={"state": json.dumps(state)})
        entry: dict[str, Any] = {
            "file": f"epoch-{epoch:06d}.safetensors",
            "epoch": epoch,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        with self._writable():
            self.directory.mkdir(parents=True, exist_ok=True)
            before = [old for old in self._entries() if old["file"] != entry["file"]][:1]
            write_whole(self.directory / entry["file"], content, durable)
            write_whole(self.directory / MANIFEST, json.dumps([entry, *before]).encode(), durable)
            keep = {MANIFEST, entry["file"], *(old["file"] for old in before)}
            for path in self.directory.iterdir():
                if path.name not in keep and path.name.startswith(("epoch-", ".epoch-", f".{MANIFEST}")):
                    path.unlink()
        if durable:
            self._synced = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole, as (tensors, state); None where there is none."""
        entries = self._entries()
        for entry in entries:
            path = self.directory / entry["file"]
            try:
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() == entry["sha256"]:
                    return safetensors.torch.load(content), _state(content)
                problem = "does not match its sha256"
            except (OSError, SafetensorError) as error:
                problem = f"cannot be read ({error})"
            instead = "starting again from the first epoch" if entry is entries[-1] else "using the one before it"
            warnings.warn(f"checkpoint {path.name} {problem}; {instead}.", RuntimeWarning, stacklevel=2)
        return None

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            cure = "Free space or choose another directory."
            raise HomeostatError(
                f"checkpoint: cannot write to {str(self.directory)!r}: {error.strerror}. {cure}"
            ) from error

    def _entries(self) -> list[dict[str, Any]]:
        """The manifest, newest first; an absent or damaged one reads as empty."""
        try:
            entries = json.loads((self.directory / MANIFEST).read_text())
            return [entry for entry in entries if Path(entry["file"]).name == entry["file"] and entry["sha256"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError):
            warnings.warn(f"{MANIFEST} is damaged; starting again from the first epoch.", RuntimeWarning, stacklevel=3)
            return []


def _state(content: bytes) -> dict[str, Any]:
    """The JSON state in the metadata of a safetensors file: 8 bytes of length, then a JSON header."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["state"])


def write_whole(path: Path, content: bytes, durable: bool) -> None:
    """Write a file under a temporary name and rename it, forced to the disk first where `durable`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        reach("checkpoint.written")
        os.replace(temporary, path)
        reach("checkpoint.stored")
    finally:
        temporary.unlink(missing_ok=True)
