"""Draws in NetCDF files that are whole, checksummed, and never handed to the C parser when damaged."""

import io
import os
import pathlib

import xarray as xr

from ebm_ppl._files import atomic_write, read_file, sha256
from ebm_ppl.errors import CheckpointError

# The checksum of everything before it, appended behind the end of the HDF5 data, where HDF5 readers do not look.
_MARK = b"\nebm_ppl sha256 "
_TRAILER_LENGTH = len(_MARK) + 64 + 1


def save_datatree(datatree: xr.DataTree, path: str | os.PathLike[str], *, overwrite: bool = False) -> pathlib.Path:
    """Write a `DataTree` to one NetCDF file, atomically and with checksums.

    The file is an ordinary NetCDF-4 (HDF5) file, readable by `az.from_netcdf`, R and Julia; numeric variables
    carry HDF5's own `fletcher32` checksums and the whole file a SHA-256 that `load_datatree` verifies.

    Args:
        datatree: what to write; attributes must be text, numbers or lists.
        path: where to write.
        overwrite: whether an existing file may be replaced.

    Returns:
        The path written.

    Raises:
        CheckpointError: the file exists, the disk is full, ... (`errno` says which); an old file is unchanged.
        TypeError: an attribute has a type that NetCDF cannot hold.

    Example:
        >>> import pathlib, tempfile, numpy as np, ebm_ppl as ebm
        >>> tree = ebm.to_datatree(np.arange(8.0).reshape(2, 4))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = ebm.diagnostics.save_datatree(tree, pathlib.Path(directory) / "draws.nc")
        ...     ebm.diagnostics.load_datatree(path).equals(tree)
        True

    References:
        The HDF Group. HDF5 File Format Specification, version 3.0.
        https://docs.hdfgroup.org/hdf5/develop/_f_m_t3.html
    """
    if not isinstance(datatree, xr.DataTree):
        raise TypeError(f"`datatree` must be an xarray.DataTree; got {type(datatree).__name__}: see ebm.to_datatree.")
    encoding = {node.path: _checksummed(node.dataset) for node in datatree.subtree}
    # Through memory: h5netcdf on a full disk crashes the process and destroys the old file.
    content = bytes(datatree.to_netcdf(None, engine="h5netcdf", encoding=encoding))
    return atomic_write(path, content + _MARK + sha256(content).encode() + b"\n", overwrite=overwrite)


def load_datatree(path: str | os.PathLike[str], *, verify: bool = True) -> xr.DataTree:
    """Read a `DataTree` that `save_datatree` wrote, after verifying every byte of it.

    Damaged bytes never reach the HDF5 library. With `verify=False` any NetCDF-4 file is read; do so only with
    files you trust, because the parser is not ours.

    Args:
        path: the file.
        verify: whether to insist on the checksum of `save_datatree`.

    Returns:
        The tree, wholly in memory; the file is closed.

    Raises:
        CheckpointError: the file is missing, unreadable, truncated, altered, or carries no checksum.
    """
    content = read_file(path)
    if verify:
        content = _verified(content, os.fspath(path))
    try:
        with xr.open_datatree(io.BytesIO(content), engine="h5netcdf") as tree:
            return tree.load()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{os.fspath(path)!r} is not a readable NetCDF-4 file: {error}") from error


def _verified(content: bytes, path: str) -> bytes:
    body, trailer = content[:-_TRAILER_LENGTH], content[-_TRAILER_LENGTH:]
    if not trailer.startswith(_MARK):
        raise CheckpointError(
            f"{path!r} ({len(content)} bytes) does not end with a checksum of ebm_ppl: it is truncated or was written "
            "by another program; load_datatree(path, verify=False) reads a file you trust."
        )
    if trailer != _MARK + sha256(body).encode() + b"\n":
        raise CheckpointError(f"{path!r} is damaged: its bytes do not match their SHA-256; restore it from a copy.")
    return body


def _checksummed(dataset: xr.Dataset) -> dict[str, dict[str, bool]]:
    # HDF5 filters work on chunks: they cannot be set for scalars, empty arrays and text of variable length.
    numeric = {name for name, variable in dataset.variables.items() if variable.dtype.kind in "fiub"}
    return {
        str(name): {"fletcher32": True}
        for name, variable in dataset.variables.items()
        if name in numeric and variable.ndim > 0 and variable.size > 0
    }
