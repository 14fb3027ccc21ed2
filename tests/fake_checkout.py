"""A checkout whose Python is a shell script: run.py is tried without network and without building anything."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
RUN = ROOT / "run.py"

# Answers what run.py asks of a Python: the probe, `-m venv`, `-m pip`. Logs every call beside itself.
FAKE_PYTHON = """#!/bin/sh
here="@LOG@"
echo "$*" >> "$here/calls"
case "$*" in
  "-I -c import sys"*) echo 3.12 ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *"pip --version"*) echo pip ;;
  *"pip "*"--require-hashes"*)
    if [ -e "$here/slow" ]; then sleep 60; fi
    if [ -e "$here/tampered" ]; then echo "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"; exit 1; fi
    echo "WARNING: Location 'file:///x' is ignored" >&2 ;;
  *"pip "*"--no-deps"*) if [ -e "$here/no-backend" ]; then exit 1; fi ;;
  "child"*) echo "$PWD|${PYTHONPATH-unset}|${PYTHONHOME-unset}|$*"; exit 7 ;;
  *) exit 0 ;;
esac
"""


def script(path, text):
    """Write an executable file; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


class Checkout:
    """A copy of run.py with a lock, a project file and a fake interpreter."""

    def __init__(self, folder):
        self.folder, self.log = folder / "check out", folder / "log"
        self.log.mkdir()
        self.folder.mkdir()
        shutil.copy(RUN, self.folder)
        (self.folder / "requirements-dev.lock").write_text("tqdm==4.70.1 \\\n    --hash=sha256:0\n")
        (self.folder / "pyproject.toml").write_text("[project]\n")
        self.python = script(folder / "fake python", FAKE_PYTHON.replace("@LOG@", str(self.log)))
        self.exe = self.folder / ".venv-dev" / "bin" / "python"
        self.stamp = self.folder / ".venv-dev" / "run-py.stamp"

    def start(self, *arguments, **variables):
        environment = {"PATH": os.defpath, "HOME": str(self.log), "EBM_PPL_PYTHON": self.python, **variables}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-S", str(self.folder / "run.py"), *arguments]
        return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)

    def run(self, *arguments, **variables):
        with self.start(*arguments, **variables) as process:
            out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def touch(self, name):
        (self.log / name).touch()

    def installs(self):
        """How often pip was asked to install, and how often an environment was made."""
        path = self.log / "calls"
        calls = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return sum(" install " in call for call in calls), sum(call.startswith("-m venv") for call in calls)


def wait_for(condition, seconds=20):
    """Poll until `condition` holds; a file that is not there yet is a no."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return
        except FileNotFoundError:
            pass
        time.sleep(0.02)
    pytest.fail("what was waited for did not happen")
