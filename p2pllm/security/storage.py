"""Files only their owner may read, written whole or not at all.

A write goes to a new file beside the old one, is flushed to the disk and renamed over it, so a
crash or a full disk leaves the old content. A file that cannot be read as what it should be is
never overwritten or repaired here: the error names it and what to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from p2pllm.domain.errors import ConfigurationError

FILE_BYTES_MAX = 4 * 2**20
"""Above the largest file kept here, a full book of invites; bounds what a foreign file costs."""

_FORMAT = 1
_MODE_BITS = os.name == "posix"


def ensure_private_folder(folder: Path) -> None:
    """Make `folder`, for its owner alone, where it does not exist.

    Raises:
        ConfigurationError: it cannot be made, or others may write to it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode
    except OSError as error:
        raise ConfigurationError(
            f"cannot make the folder {folder}: {_reason(error)}; choose another data folder"
        ) from error
    if _MODE_BITS and mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(f"others may write to {folder}; run: chmod 700 {folder}")


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, mode 0600, on the disk when this returns.

    Raises:
        ConfigurationError: it cannot be written; what was there before is still there.
    """
    temporary = write_temporary(path.parent, data)
    try:
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_temporary(folder: Path, data: bytes) -> Path:
    """A new file in `folder`, mode 0600, flushed to the disk; the caller moves or removes it.

    Raises:
        ConfigurationError: it cannot be written; nothing is left behind.
    """
    ensure_private_folder(folder)
    try:
        descriptor, name = tempfile.mkstemp(prefix=".p2pllm-", dir=folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise _unwritable(folder, error) from error
    return Path(name)


def read_private(path: Path, *, remedy: str) -> bytes | None:
    """What is in `path`, or None where there is no such file.

    Args:
        path: the file.
        remedy: what to do where it is damaged, to end the error's line with.

    Raises:
        ConfigurationError: it cannot be read, others may read it, or it is far too large.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {_reason(error)}; {remedy}") from error
    if _MODE_BITS and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(f"others may read or write {path}; run: chmod 600 {path}")
    if len(data) > FILE_BYTES_MAX:
        raise damaged(path, remedy)
    return data


def write_private_json(path: Path, kind: str, content: dict[str, Any]) -> None:
    """Replace `path` by `content`, marked as `kind`.

    Raises:
        ConfigurationError: it cannot be written.
    """
    document = {"kind": kind, "format": _FORMAT, "content": content}
    write_private(path, json.dumps(document, indent=1).encode() + b"\n")


def read_private_json(path: Path, kind: str, *, remedy: str) -> dict[str, Any] | None:
    """The content `write_private_json` wrote, or None where there is no such file.

    Raises:
        ConfigurationError: it cannot be read, is torn, of another kind, or of a newer p2pllm.
    """
    data = read_private(path, remedy=remedy)
    if data is None:
        return None
    try:
        document: Any = json.loads(data)
        found, version, content = document["kind"], document["format"], document["content"]
    except (ValueError, KeyError, TypeError, RecursionError):
        # Not chained: a parser's message may quote the file.
        raise damaged(path, remedy) from None
    if found != kind or not isinstance(content, dict) or not isinstance(version, int):
        raise damaged(path, remedy)
    if version > _FORMAT:
        raise ConfigurationError(f"{path} was written by a newer p2pllm; upgrade this one")
    return content


def damaged(path: Path, remedy: str) -> ConfigurationError:
    """The error for a file that is torn, or not ours at all."""
    return ConfigurationError(f"{path} is damaged or not a file of p2pllm; {remedy}")


def _unwritable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"cannot write {path}: {_reason(error)}; make room or choose another data folder"
    )


def _flush_folder(folder: Path) -> None:
    """Put the renaming itself on the disk, where the system lets a folder be opened."""
    if not _MODE_BITS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
