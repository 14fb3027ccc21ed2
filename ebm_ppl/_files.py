"""Files that are either complete or absent: atomic writes, checksums, and one error that keeps `errno`."""

import contextlib
import errno
import hashlib
import os
import pathlib
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO

from ebm_ppl.errors import CheckpointError

# What zipfile, zlib, NumPy and json raise for damaged bytes; all of it means one thing to the user.
DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    TypeError,
    SyntaxError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}


def atomic_write(
    path: str | os.PathLike[str], content: bytes | Callable[[IO[bytes]], object], *, overwrite: bool = False
) -> pathlib.Path:
    """Write a file so that `path` holds the old bytes or all the new ones, whatever happens in between.

    The bytes go to a temporary file (mode 0600, unpredictable name) in the same directory, which is flushed to disk
    and then renamed over `path`; the directory is flushed too. On failure the temporary file is removed.

    Args:
        path: where to write; a symbolic link is followed.
        content: the bytes, or a function that writes them into the open binary file it is given.
        overwrite: whether an existing file may be replaced.

    Returns:
        The path written.

    Raises:
        CheckpointError: the file exists and `overwrite` is False (`errno` EEXIST), the disk is full (ENOSPC), the
            directory is missing (ENOENT) or read-only, ... An old file is left as it was.

    Example:
        >>> import tempfile, pathlib
        >>> from ebm_ppl._files import atomic_write
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     atomic_write(pathlib.Path(directory) / "a.bin", b"energy").read_bytes()
        b'energy'
    """
    target = pathlib.Path(os.path.realpath(path))
    if target.exists() and not overwrite:
        raise _exists(target)
    try:
        _write_and_rename(target, content, overwrite=overwrite)
    except OSError as error:
        raise _checkpoint_error("write", target, error) from error
    return target


def read_file(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a file; a `CheckpointError` with `errno` and path where it cannot be read."""
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise _checkpoint_error("read", pathlib.Path(path), error) from error


@contextlib.contextmanager
def file_errors(verb: str, path: pathlib.Path) -> Iterator[None]:
    """What the system says against a file, as a `CheckpointError` with `errno` and path."""
    try:
        yield
    except OSError as error:
        raise _checkpoint_error(verb, path, error) from error


def sha256(content: bytes | bytearray | memoryview) -> str:
    """Hexadecimal SHA-256 of bytes.

    Example:
        >>> from ebm_ppl._files import sha256
        >>> sha256(b"")[:16]
        'e3b0c44298fc1c14'
    """
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks; a `CheckpointError` where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _checkpoint_error("read", pathlib.Path(path), error) from error


def _write_and_rename(target: pathlib.Path, content: bytes | Callable[[IO[bytes]], object], *, overwrite: bool) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(name, target)
        else:
            _rename_to_new(name, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    _sync_directory(target.parent)


def _rename_to_new(name: str, target: pathlib.Path) -> None:
    # A hard link fails where the name exists, so two writers cannot overwrite each other between check and rename.
    try:
        os.link(name, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.replace(name, target)


def _sync_directory(directory: pathlib.Path) -> None:
    if os.name != "posix":
        return  # a directory cannot be opened for fsync there
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exists(target: pathlib.Path) -> CheckpointError:
    return CheckpointError(errno.EEXIST, "the file exists; pass overwrite=True to replace it", str(target))


def _checkpoint_error(verb: str, target: pathlib.Path, error: OSError) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    if error.errno == errno.EEXIST:
        return _exists(target)
    cause = error.strerror or str(error)
    if error.errno is None:
        return CheckpointError(f"cannot {verb} {str(target)!r}: {cause}")
    kept = "; what was there before is unchanged" if verb == "write" else ""
    return CheckpointError(error.errno, f"cannot {verb}: {cause}{kept}", str(target))
