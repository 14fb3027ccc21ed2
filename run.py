#!/usr/bin/env python3
"""Set up and run ebm_ppl from a bare checkout: `python3 run.py demo`, `python3 run.py test`.

Any Python >= 3.6 starts this file; it needs the standard library only. It finds a Python 3.12 to 3.14 (or has uv
fetch one), builds the private environment `.venv-dev` from the hash-locked `requirements-dev.lock`, and runs the
command in it. Nothing outside the checkout is touched, except the caches of pip and uv and a Python that uv installs.

Exit code: the command's own; 2: unknown command; 3: the set-up failed; 130: the set-up was interrupted.
"""

import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.abspath(__file__))
ENVIRONMENT = os.path.join(ROOT, ".venv-dev")
UV_ENVIRONMENT = os.path.join(ROOT, ".venv-uv")
GUARD = os.path.join(ROOT, ".venv-dev.lock")
LOCK = os.path.join(ROOT, "requirements-dev.lock")
PROJECT = os.path.join(ROOT, "pyproject.toml")
STAMP = os.path.join(ENVIRONMENT, "run-py.stamp")
UNFINISHED = "unfinished"  # the stamp's content while an installation is under way

LOW, HIGH = (3, 12), (3, 14)
VERSIONS = ["%d.%d" % (LOW[0], minor) for minor in range(LOW[1], HIGH[1] + 1)]
RANGE = "%s to %s" % (VERSIONS[0], VERSIONS[-1])
WINDOWS = os.name == "nt"
MAX_LINES = 400
PROBE_SECONDS = 60
# The lock has wheels for 64-bit CPython with the GIL; a Debian Python may lack `venv` or `ensurepip`.
PROBE = (
    "import sys, sysconfig, venv, ensurepip; print('%d.%d' % sys.version_info[:2]); sys.exit("
    "sys.implementation.name != 'cpython' or sys.maxsize < 2**32 or bool(sysconfig.get_config_var('Py_GIL_DISABLED')))"
)
# pip repeats these once per package where a configured folder lacks that package.
HARMLESS = re.compile(r"\s*(WARNING: )?(Location|Url) .* is ignored|DEPRECATION: |\[notice\] ")


class SetupError(Exception):
    """The environment cannot be built; the message is one sentence of advice."""


def say(message):
    """Print one message of this file, on stderr: stdout belongs to the command."""
    sys.stdout.flush()
    sys.stderr.write("[run.py] %s\n" % message)
    sys.stderr.flush()


def child_environment():
    """The variables of every child: no foreign Python settings, no look-ups, no files outside the checkout."""
    variables = dict(os.environ)
    for name in ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__"):
        variables.pop(name, None)
    variables["PIP_USER"] = "0"  # a user-wide `user = true` cannot work in a virtual environment
    variables["PYRIGHT_PYTHON_IGNORE_WARNINGS"] = "1"  # else pyright asks the network whether it is the newest
    variables["PYRIGHT_PYTHON_USE_BUNDLED_PYRIGHT"] = "1"
    variables.setdefault("NO_MKDOCS_2_WARNING", "1")  # a banner about another product
    variables.setdefault("MPLCONFIGDIR", os.path.join(ROOT, ".matplotlib_cache"))
    return variables


# --- finding a Python ------------------------------------------------------------------------------------------------


def output_of(command, timeout=None):
    """What `command` printed; None if it does not start, fails, or takes longer than `timeout` seconds."""
    with tempfile.TemporaryFile() as output:  # not a pipe: a hung grandchild would hold it open
        quiet = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.DEVNULL}
        try:
            process = subprocess.Popen(command, env=child_environment(), start_new_session=not WINDOWS, **quiet)
        except OSError:
            return None
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill() if WINDOWS else os.killpg(process.pid, 9)
            process.wait()
            return None
        output.seek(0)
        return output.read().decode("utf-8", "replace") if code == 0 else None


def supported(command):
    """Whether `command` starts a Python that can carry the environment. Executed, because a shim may not start."""
    answer = output_of([*command, "-I", "-c", PROBE], PROBE_SECONDS)
    try:
        return LOW <= tuple(int(part) for part in (answer or "").strip().split(".")) <= HIGH
    except ValueError:
        return False


def on_path(name):
    """Every executable `name` on PATH, in order: the first may be a broken shim."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    found = [shutil.which(name, path=folder) for folder in folders if folder]
    return [path for path in found if path]


def newest_first(pattern):
    """Paths that match, by the numbers in them, highest first."""
    return sorted(glob.glob(pattern), key=lambda path: [int(n) for n in re.findall(r"\d+", path)], reverse=True)


def candidates():
    """Commands that may start a suitable Python, best first."""
    chosen = os.environ.get("EBM_PPL_PYTHON")
    if chosen:
        yield [chosen]
    if sys.executable:
        yield [sys.executable]
    for version in VERSIONS:
        for path in on_path("python" + version):
            yield [path]
        if WINDOWS and shutil.which("py"):
            yield ["py", "-" + version]
    home = os.path.expanduser("~")
    pyenv = os.environ.get("PYENV_ROOT") or os.path.join(home, ".pyenv")
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(home, ".local", "share")
    uv = os.environ.get("UV_PYTHON_INSTALL_DIR") or os.path.join(data, "uv", "python")
    patterns = [
        os.path.join(pyenv, "versions", "%s.*", "bin", "python"),
        os.path.join(uv, "cpython-%s.*", "bin", "python3"),
        "/opt/homebrew/opt/python@%s/bin/python3.*[0-9]",
        "/usr/local/opt/python@%s/bin/python3.*[0-9]",
        "/Library/Frameworks/Python.framework/Versions/%s/bin/python3",
    ]
    for pattern in patterns:
        for version in VERSIONS:
            for path in newest_first(pattern % version):
                yield [path]
    for path in on_path("python3") + on_path("python"):
        yield [path]


def find_python():
    """The first candidate that works; else one that uv fetches."""
    tried = []
    for command in candidates():
        inside = os.path.abspath(command[0]).startswith(ENVIRONMENT + os.sep)  # about to be deleted
        if inside or command in tried:
            continue
        tried.append(command)
        if supported(command):
            return command
        if command == [os.environ.get("EBM_PPL_PYTHON")]:
            say("EBM_PPL_PYTHON=%s starts no Python %s; looking further" % (command[0], RANGE))
    command = python_from_uv()
    if command is None or not supported(command):
        raise SetupError(
            "no Python %s was found and none could be fetched: install Python >= %s yourself (Debian, Ubuntu: "
            "its venv package too, `apt install python3-venv`), or set EBM_PPL_PYTHON to one" % (RANGE, VERSIONS[0])
        )
    return command


def python_from_uv():
    """A Python that uv installs, or None."""
    say("no Python %s on this machine; asking uv for one" % RANGE)
    uv = shutil.which("uv") or private_uv()
    if uv is None or call([uv, "python", "install", "-q", VERSIONS[0]]) != 0:
        return None
    path = output_of([uv, "python", "find", "--python-preference", "only-managed", VERSIONS[0]], PROBE_SECONDS)
    return [path.strip()] if path else None


def private_uv():
    """The locked uv in an environment of its own, or None."""
    uv = executable(UV_ENVIRONMENT, "uv")
    if output_of([uv, "--version"], PROBE_SECONDS):
        return uv
    with open(LOCK) as file:
        locked = re.search(r"^uv==.*(\n .*)*", file.read(), re.MULTILINE)
    if locked is None or call([sys.executable, "-m", "venv", "--clear", UV_ENVIRONMENT]) != 0:
        return None
    requirements = os.path.join(UV_ENVIRONMENT, "uv.txt")
    with open(requirements, "w") as file:
        file.write(locked.group() + "\n")
    pip = [executable(UV_ENVIRONMENT, "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    if sys.version_info < (3, 9):  # its bundled pip may be too old to know uv's wheels
        call([*pip, "--upgrade", "pip"])
    return uv if call([*pip, "--require-hashes", "-r", requirements]) == 0 else None


# --- building the environment ----------------------------------------------------------------------------------------


def executable(environment, name):
    """The path of a program of a virtual environment."""
    return os.path.join(environment, "Scripts", name + ".exe") if WINDOWS else os.path.join(environment, "bin", name)


def call(command, keep_open=()):
    """Run `command`, its output less pip's harmless lines on stderr; the exit code."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "pass_fds": () if WINDOWS else keep_open}
    try:
        process = subprocess.Popen(command, env=child_environment(), **pipe)
    except OSError as error:
        say("%s does not start: %s" % (command[0], error))
        return 1
    with process:
        try:
            for line in process.stdout or ():
                text = line.decode("utf-8", "replace")
                if not HARMLESS.match(text):
                    sys.stderr.write(text)
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise


def expected_stamp():
    """What the stamp must say. The path belongs in it: an editable installation is absolute."""
    digest = hashlib.sha256(ROOT.encode("utf-8", "surrogateescape"))
    for path in (LOCK, PROJECT):
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def read_stamp():
    """The stamp, or an empty string."""
    try:
        with open(STAMP) as file:
            return file.read().strip()
    except OSError:
        return ""


def write_stamp(text):
    """Replace the stamp in one step."""
    with open(STAMP + ".new", "w") as file:
        file.write(text + "\n")
    os.replace(STAMP + ".new", STAMP)


def ready(exe):
    """Whether the environment is what the lock asks for, and starts."""
    return read_stamp() == expected_stamp() and supported([exe])


def acquire(file):
    """Lock `file` until its last holder ends, however it ends; a file system without locks goes unguarded."""
    waiting = "another run.py is building .venv-dev; waiting for it"
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                return msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # tries for ten seconds
            except OSError:
                say(waiting)
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(waiting)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        say("this file system has no locks (%s); start only one run.py until it is done" % error.strerror)


def build(exe, guard):
    """Build or mend the environment. The stamp is written last, so that the next run repairs an interrupted one."""
    stamp = expected_stamp()
    pip = [exe, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    # The build backend comes from the lock, hence no isolation.
    steps = [[*pip, "--require-hashes", "-r", LOCK], [*pip, "--no-deps", "--no-build-isolation", "-e", ROOT]]
    if read_stamp() == UNFINISHED or not supported([exe]) or output_of([exe, "-m", "pip", "--version"]) is None:
        python = find_python()
        say("building .venv-dev with %s" % " ".join(python))
        if os.path.islink(ENVIRONMENT):
            os.unlink(ENVIRONMENT)
        elif os.path.exists(ENVIRONMENT):
            shutil.rmtree(ENVIRONMENT)
        os.makedirs(ENVIRONMENT)
        steps.insert(0, [*python, "-m", "venv", ENVIRONMENT])
    write_stamp(UNFINISHED)
    with open(LOCK) as file:
        say("installing %d locked packages (the first time: a minute or two)" % sum("==" in line for line in file))
    for step in steps:
        if call(step, (guard.fileno(),)) != 0:  # the open guard outlives this process with an orphaned pip
            os.unlink(STAMP)
            raise SetupError("the lines above say why; nothing outside .venv-dev was touched; run again to retry")
    write_stamp(stamp)


def environment_python():
    """The environment's Python, built or mended first where need be."""
    exe = executable(ENVIRONMENT, "python")
    if not ready(exe):
        with open(GUARD, "a+") as guard:  # against a second first run
            acquire(guard)
            if not ready(exe):  # another run.py may have built it meanwhile
                build(exe, guard)
    return exe


# --- commands --------------------------------------------------------------------------------------------------------


def become(command):
    """Run `command` in place of this process (Windows: wait for it); the exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    if not WINDOWS:
        os.execve(command[0], command, child_environment())
    process = subprocess.Popen(command, env=child_environment())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the child has it too, and decides
            continue


def long_files():
    """Tracked Python files of more than `MAX_LINES` lines, one line of text each."""
    tracked = output_of(["git", "ls-files", "-z", "--", "*.py"], PROBE_SECONDS)
    names = glob.glob("**/*.py", recursive=True) if tracked is None else tracked.split("\0")  # None: not a git checkout
    found = []
    for name in filter(os.path.isfile, names):  # a tracked file may be deleted and not yet committed
        with open(name, "rb") as file:
            lines = sum(1 for _ in file)
        if lines > MAX_LINES:
            found.append("%s: %d lines; split it (one algorithm per file)" % (name, lines))
    return found


def lint(exe):
    """Run every check, also after one has failed; the first failure's exit code."""
    checks = [
        [exe, "-m", "ruff", "check"],
        [exe, "-m", "ruff", "format", "--check"],
        [exe, "-m", "pyright", "--pythonpath", exe],
        [exe, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        [exe, "-m", "codespell_lib"],
    ]
    codes = [subprocess.call(check, env=child_environment()) for check in checks]
    overlong = long_files()
    print("\n".join(overlong) or "No file has more than %d lines." % MAX_LINES)
    failures = [code if code > 0 else 128 - code for code in [*codes, len(overlong) and 1] if code]
    say("lint: %d of %d checks failed" % (len(failures), len(codes) + 1))
    return failures[0] if failures else 0


# Command: what usage says, and what the environment's Python is handed (None: see `main`).
# A file's tests share fixtures and compiled programs: they stay in one process. Each process takes about 2 GiB.
WORKERS = ["--numprocesses", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder"]
COMMANDS = {
    "bench": ("run the benchmarks", ["benchmarks/run.py"]),
    "demo": ("learn an energy of digits, restore half-hidden ones, diagnose", ["examples/01_digits_inpainting.py"]),
    "docs": ("build the documentation into site/, or mkdocs's arguments, such as serve", ["-m", "mkdocs"]),
    "lint": ("ruff, pyright, import-linter, codespell, file lengths", None),
    "python": ("the environment's Python, with any arguments", []),
    "test": ("run the test suite; pytest's arguments, such as -k score", ["-m", "pytest", "-q", *WORKERS]),
    "which": ("print the path of the environment's Python", None),
}


def usage():
    """What `run.py` offers."""
    lines = ["  %-7s %s" % (name, COMMANDS[name][0]) for name in sorted(COMMANDS)]
    return "usage: python3 run.py COMMAND [ARGUMENT ...]\n\n%s\n" % "\n".join(lines)


def main(arguments):
    """Set up where need be, run the command; the exit code."""
    command, rest = (arguments or [""])[0], arguments[1:]
    if command not in COMMANDS or (rest and command in ("lint", "which")):
        (sys.stdout if command in ("-h", "--help") else sys.stderr).write(usage())
        return 0 if command in ("-h", "--help") else 2
    os.chdir(ROOT)
    try:
        exe = environment_python()
    except (SetupError, OSError) as error:
        say("set-up failed: %s" % error)
        return 3
    except KeyboardInterrupt:
        say("interrupted; run the same command again to finish the set-up")
        return 130
    if command == "which":
        print(exe)
        return 0
    if command == "lint":
        return lint(exe)
    if command == "docs" and not rest:
        rest = ["build", "--strict"]
    return become([exe, *COMMANDS[command][1], *rest])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
