"""run.py, function by function: the file itself, and how it finds a Python."""

import ast
import importlib.util
import os
import pathlib
import subprocess
import sys
import time

import pytest

from tests.fake_checkout import ROOT, script

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the fake interpreters are shell scripts")


@pytest.fixture
def run():
    """A module object of its own for each test, so that constants may be replaced."""
    spec = importlib.util.spec_from_file_location("run_under_test", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the file itself


def test_parses_as_python_3_6_and_imports_the_standard_library_only():
    tree = ast.parse((ROOT / "run.py").read_text(encoding="ascii"), feature_version=(3, 6))
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in imports for alias in node.names}
    assert names <= sys.stdlib_module_names
    assert not any(isinstance(node, ast.JoinedStr) for node in ast.walk(tree))


def test_starts_under_the_oldest_python_at_hand():
    found = sorted((pathlib.Path.home() / ".pyenv" / "versions").glob("3.[6-9].*/bin/python"))
    python = str(found[0]) if found else sys.executable
    done = subprocess.run([python, str(ROOT / "run.py"), "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: python3 run.py COMMAND" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["lint", "more"], ["which", "more"]])
def test_no_or_unknown_command_is_usage_and_2_and_builds_nothing(run, capsys, arguments):
    assert run.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(name in captured.err for name in ("bench", "demo", "docs", "lint", "python", "test", "which"))


# --- finding a Python


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("echo 3.12", True),
        ("echo 3.14", True),
        ("echo 3.11", False),
        ("echo 3.15", False),
        ("echo 4.0", False),
        ("echo 3.12; exit 1", False),
        ("exit 1", False),
        ("echo junk", False),
        ("echo Welcome; echo 3.12", False),
        ("printf '\\377\\376'", False),
        (":", False),
    ],
)
def test_supported_believes_only_what_runs(run, tmp_path, body, expected):
    assert run.supported([script(tmp_path / "python", "#!/bin/sh\n" + body)]) is expected


def test_supported_refuses_what_is_not_a_program(run, tmp_path):
    (tmp_path / "text").write_text("no program")
    assert not run.supported([str(tmp_path / "absent")])
    assert not run.supported([str(tmp_path / "text")])
    assert not run.supported([str(tmp_path)])


def test_supported_gives_up_on_what_hangs_and_leaves_no_process_behind(run, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "PROBE_SECONDS", 0.3)
    path = script(tmp_path / "python", '#!/bin/sh\nsh -c "echo \\$\\$ > ' + str(tmp_path / "pid") + '; sleep 60"\n')
    started = time.monotonic()
    assert not run.supported([path])
    assert time.monotonic() - started < 10
    grandchild = int((tmp_path / "pid").read_text())
    for _ in range(100):
        state = pathlib.Path(f"/proc/{grandchild}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the hung grandchild still runs")


def test_supported_passes_the_python_that_runs_the_tests(run):
    assert run.supported([sys.executable])


def test_candidates_come_in_the_documented_order(run, tmp_path, monkeypatch):
    def fake(*parts):
        return script(tmp_path.joinpath(*parts), "#!/bin/sh\nexit 1\n")

    on_path = [fake("a", "python3.12"), fake("b", "python3.12"), fake("a", "python3.13")]
    plain = [fake("b", "python3"), fake("a", "python")]
    pyenv = [
        fake("pyenv", "versions", version, "bin", "python") for version in ("3.12.10", "3.12.9", "3.13.1", "3.14.0")
    ]
    fake("pyenv", "versions", "3.11.7", "bin", "python")
    uv = [fake("data", "uv", "python", f"cpython-3.13.{n}-linux", "bin", "python3") for n in (11, 2)]
    monkeypatch.setenv("PATH", f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("UV_PYTHON_INSTALL_DIR", raising=False)
    monkeypatch.setenv("EBM_PPL_PYTHON", "chosen")
    monkeypatch.setattr(run.glob, "glob", lambda pattern, _glob=run.glob.glob: _below(tmp_path, pattern, _glob))
    found = [command[0] for command in run.candidates()]
    assert found == ["chosen", sys.executable, *on_path, *pyenv, *uv, *plain]


def _below(folder, pattern, glob):
    """What this machine has in its system folders must not matter."""
    return glob(pattern) if pattern.startswith(str(folder)) else []


def test_the_first_working_candidate_wins_and_a_wrong_choice_is_named(run, tmp_path, monkeypatch, capsys):
    broken = script(tmp_path / "shim", "#!/bin/sh\nexit 127\n")
    good = script(tmp_path / "good", "#!/bin/sh\necho 3.13\n")
    never = script(tmp_path / "never", "#!/bin/sh\ntouch " + str(tmp_path / "tried") + "\necho 3.12\n")
    monkeypatch.setenv("EBM_PPL_PYTHON", broken)
    monkeypatch.setattr(run, "candidates", lambda: iter([[broken], [good], [never]]))
    assert run.find_python() == [good]
    assert not (tmp_path / "tried").exists()
    assert f"[run.py] EBM_PPL_PYTHON={broken} starts no Python 3.12 to 3.14" in capsys.readouterr().err


def test_an_interpreter_inside_the_environment_is_no_candidate(run, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ENVIRONMENT", str(tmp_path / ".venv-dev"))
    inside = script(tmp_path / ".venv-dev" / "bin" / "python", "#!/bin/sh\necho 3.12\n")
    outside = script(tmp_path / "python", "#!/bin/sh\necho 3.12\n")
    monkeypatch.setattr(run, "candidates", lambda: iter([[inside], [outside]]))
    assert run.find_python() == [outside]


def test_uv_is_asked_last(run, tmp_path, monkeypatch, capsys):
    python = script(tmp_path / "managed", "#!/bin/sh\necho 3.12\n")
    log = tmp_path / "log"
    script(tmp_path / "bin" / "uv", f'#!/bin/sh\necho "$*" >> "{log}"\ncase "$2" in find) echo "{python}";; esac\n')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.defpath}")
    monkeypatch.setattr(run, "candidates", lambda: iter([]))
    assert run.find_python() == [python]
    assert log.read_text().splitlines() == [
        "python install -q 3.12",
        "python find --python-preference only-managed 3.12",
    ]
    assert "asking uv" in capsys.readouterr().err


def test_no_python_and_no_download_is_one_sentence_of_advice(run, tmp_path, monkeypatch, capsys):
    script(tmp_path / "bin" / "uv", "#!/bin/sh\nexit 2\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.defpath}")
    monkeypatch.setattr(run, "candidates", lambda: iter([]))
    monkeypatch.setattr(run, "STAMP", str(tmp_path / "stamp"))
    monkeypatch.setattr(run, "GUARD", str(tmp_path / "guard"))
    monkeypatch.setattr(run, "ENVIRONMENT", str(tmp_path / ".venv-dev"))
    monkeypatch.chdir(ROOT)
    assert run.main(["which"]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("[run.py] set-up failed: no Python 3.12 to 3.14 was found")
    assert "EBM_PPL_PYTHON" in last


def test_private_uv_is_installed_by_the_hashes_of_the_lock(run, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(run, "UV_ENVIRONMENT", str(tmp_path))
    monkeypatch.setattr(run, "call", lambda command: calls.append(command) or 0)
    assert run.private_uv() == str(tmp_path / "bin" / "uv")
    assert calls[-1][-3:] == ["--require-hashes", "-r", str(tmp_path / "uv.txt")]
    first, *hashes = (tmp_path / "uv.txt").read_text().splitlines()
    assert first.startswith("uv==")
    assert hashes
    assert all(line.startswith("    --hash=sha256:") for line in hashes)


def test_pips_harmless_lines_are_dropped_and_its_errors_kept(run, capfd):
    text = (
        "WARNING: Location 'file:///x' is ignored: it is neither a file nor a directory.\nERROR: real\nWARNING: real\n"
    )
    assert run.call([sys.executable, "-c", f"import sys; sys.stderr.write({text!r}); sys.exit(4)"]) == 4
    assert capfd.readouterr() == ("", "ERROR: real\nWARNING: real\n")


def test_long_files_looks_at_tracked_files_only(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch.py").write_text("\n" * 500)
    (tmp_path / "tracked.py").write_text("\n" * 401)
    for command in (["init", "-q"], ["add", "tracked.py"]):
        subprocess.run(["git", *command], check=True)
    assert run.long_files() == ["tracked.py: 401 lines; split it (one algorithm per file)"]
