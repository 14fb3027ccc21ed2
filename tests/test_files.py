"""A file is written whole or not at all."""

import errno
import os
import pathlib
import stat
import subprocess
import sys

import pytest

import ebm_ppl
from ebm_ppl._files import _rename_to_new, atomic_write, read_file, sha256, sha256_file
from ebm_ppl.errors import CheckpointError


def test_writes_bytes_and_writers(tmp_path):
    path = atomic_write(tmp_path / "a", b"bytes")
    assert path.read_bytes() == b"bytes"
    assert atomic_write(str(tmp_path / "b"), lambda file: file.write(b"writer")).read_bytes() == b"writer"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_refuses_to_overwrite_unless_told(tmp_path):
    path = atomic_write(tmp_path / "a", b"old")
    with pytest.raises(CheckpointError, match="overwrite=True") as caught:
        atomic_write(path, b"new")
    assert caught.value.errno == errno.EEXIST
    assert path.read_bytes() == b"old"
    atomic_write(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"


def test_a_writer_that_creates_the_target_meanwhile_loses_the_race(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(CheckpointError, match="overwrite=True"):
        atomic_write(path, lambda file: path.write_bytes(b"other process"))
    assert path.read_bytes() == b"other process"
    assert os.listdir(tmp_path) == ["a"]


def test_without_hard_links_the_rename_still_refuses(tmp_path, monkeypatch):
    def no_link(source, target):
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "link", no_link)
    path = atomic_write(tmp_path / "a", b"old")
    assert path.read_bytes() == b"old"
    (tmp_path / "new").write_bytes(b"new")
    with pytest.raises(FileExistsError):
        _rename_to_new(str(tmp_path / "new"), path)
    assert path.read_bytes() == b"old"


def test_a_failing_writer_leaves_the_old_file_and_no_litter(tmp_path):
    path = atomic_write(tmp_path / "a", b"old")

    def full(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left") as caught:
        atomic_write(path, full, overwrite=True)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)

    def interrupted(file):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, interrupted, overwrite=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE")
def test_a_real_file_size_limit_is_named(tmp_path):
    """The system itself refuses the bytes (EFBIG under RLIMIT_FSIZE), as a full disk does."""
    path = atomic_write(tmp_path / "a", b"old")
    script = (
        "import resource, signal, sys, ebm_ppl._files as files, ebm_ppl.errors as errors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    files.atomic_write(sys.argv[1], bytes(100000), overwrite=True)\n"
        "except errors.CheckpointError as error:\n"
        "    sys.exit(error.errno)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(ebm_ppl.__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, env=environment)
    assert result.returncode == errno.EFBIG, result.stderr
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_missing_directory_and_missing_file(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        atomic_write(tmp_path / "absent" / "a", b"x")
    assert caught.value.errno == errno.ENOENT
    for reader in (read_file, sha256_file):
        with pytest.raises(CheckpointError, match="cannot read") as caught:
            reader(tmp_path / "absent")
        assert caught.value.errno == errno.ENOENT


def test_symbolic_links_are_followed(tmp_path):
    target = atomic_write(tmp_path / "target", b"old")
    (tmp_path / "link").symlink_to(target)
    atomic_write(tmp_path / "link", b"new", overwrite=True)
    assert target.read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()


def test_checksums_agree(tmp_path):
    path = atomic_write(tmp_path / "a", b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(path) == sha256(b"abc")
    assert read_file(path) == b"abc"
