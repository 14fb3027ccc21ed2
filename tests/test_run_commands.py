"""run.py, run as a whole in a fake checkout: building, repairing, failing, commands."""

import os
import signal

import pytest

from tests.fake_checkout import Checkout, script, wait_for

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the fake interpreters are shell scripts")


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


# --- building the environment


def test_first_run_builds_then_nothing_is_left_to_do(checkout):
    code, out, err = checkout.run("which")
    assert (code, out) == (0, f"{checkout.exe}\n")
    assert err.splitlines() == [
        f"[run.py] building .venv-dev with {checkout.python}",
        "[run.py] installing 1 locked packages (the first time: a minute or two)",
    ]
    assert checkout.installs() == (2, 1)
    assert checkout.run("which") == (0, f"{checkout.exe}\n", "")
    assert checkout.installs() == (0, 0)


@pytest.mark.parametrize("name", ["requirements-dev.lock", "pyproject.toml"])
def test_a_changed_file_reinstalls_into_the_same_environment(checkout, name):
    checkout.run("which")
    checkout.installs()
    with open(checkout.folder / name, "a") as file:
        file.write("# changed\n")
    assert checkout.run("which")[0] == 0
    assert checkout.installs() == (2, 0)


def test_a_moved_checkout_reinstalls(checkout):
    checkout.run("which")
    checkout.installs()
    checkout.folder = checkout.folder.rename(checkout.folder.parent / "moved")
    code, out, _ = checkout.run("which")
    assert (code, out) == (0, f"{checkout.folder / '.venv-dev' / 'bin' / 'python'}\n")
    assert checkout.installs() == (2, 0)


def test_an_environment_whose_python_is_gone_is_rebuilt(checkout):
    checkout.run("which")
    checkout.installs()
    checkout.exe.unlink()
    leftover = checkout.exe.parent / "leftover"
    leftover.touch()
    assert checkout.run("which")[0] == 0
    assert checkout.installs() == (2, 1)
    assert not leftover.exists()


@pytest.mark.parametrize("fault", ["tampered", "no-backend"])
def test_a_failed_pip_is_3_with_one_sentence_and_leaves_no_stamp(checkout, fault):
    checkout.touch(fault)
    code, out, err = checkout.run("which")
    assert (code, out) == (3, "")
    assert [line for line in err.splitlines() if "set-up failed" in line] == [
        "[run.py] set-up failed: the lines above say why; nothing outside .venv-dev was touched; run again to retry"
    ]
    assert ("DO NOT MATCH THE HASHES" in err) == (fault == "tampered")
    assert not checkout.stamp.exists()
    (checkout.log / fault).unlink()
    assert checkout.run("which")[0] == 0


def test_missing_lock_is_3_not_a_traceback(checkout):
    (checkout.folder / "requirements-dev.lock").unlink()
    code, _, err = checkout.run("which")
    assert code == 3
    assert "requirements-dev.lock" in err
    assert "Traceback" not in err


def test_interrupted_set_up_is_130_and_the_next_run_starts_afresh(checkout):
    checkout.touch("slow")
    with checkout.start("which") as process:
        wait_for(lambda: "--require-hashes" in (checkout.log / "calls").read_text())
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; run the same command again" in err
    (checkout.log / "slow").unlink()
    checkout.installs()
    assert checkout.run("which")[0] == 0
    assert checkout.installs() == (2, 1)


def test_a_second_first_run_waits_for_the_first_and_installs_nothing(checkout):
    checkout.touch("slow")
    script(checkout.log / "sleep", f'#!/bin/sh\nwhile [ -e "{checkout.log}/slow" ]; do /bin/sleep 0.05; done\n')
    path = f"{checkout.log}{os.pathsep}{os.defpath}"
    with checkout.start("which", PATH=path) as first:
        wait_for(lambda: "--require-hashes" in (checkout.log / "calls").read_text())
        with checkout.start("which", PATH=path) as second:
            assert second.stderr.readline() == "[run.py] another run.py is building .venv-dev; waiting for it\n"
            (checkout.log / "slow").unlink()
            assert second.wait(timeout=30) == first.wait(timeout=30) == 0
    assert checkout.installs() == (2, 1)


def test_a_killed_first_run_frees_the_guard(checkout):
    checkout.touch("slow")
    with checkout.start("which") as process:
        wait_for(lambda: "--require-hashes" in (checkout.log / "calls").read_text())
        os.killpg(process.pid, signal.SIGKILL)
    (checkout.log / "slow").unlink()
    code, _, err = checkout.run("which")
    assert code == 0
    assert "another run.py" not in err


# --- commands


def test_the_childs_exit_code_arguments_and_surroundings(checkout):
    code, out, _ = checkout.run("python", "child", "two words", "-k", PYTHONPATH="/nowhere", PYTHONHOME="")
    assert code == 7
    assert out == f"{checkout.folder}|unset|unset|child two words -k\n"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["demo", "--fast"], "examples/01_digits_inpainting.py --fast"),
        (
            ["test", "-k", "score"],
            "-m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -k score",
        ),
        (["docs"], "-m mkdocs build --strict"),
        (["docs", "serve"], "-m mkdocs serve"),
        (["bench", "--quick"], "benchmarks/run.py --quick"),
        (["python", "-V"], "-V"),
    ],
)
def test_what_each_command_runs(checkout, command, expected):
    assert checkout.run(*command)[0] == 0
    assert (checkout.log / "calls").read_text().splitlines()[-1] == expected


def test_lint_runs_every_check_and_passes(checkout):
    code, out, err = checkout.run("lint")
    assert code == 0, err
    assert "No file has more than 400 lines." in out
    ran = (checkout.log / "calls").read_text().splitlines()[-5:]
    tools = ("ruff check", "ruff format --check", "pyright --pythonpath", "lint_imports_command", "codespell_lib")
    assert all(tool in call for tool, call in zip(tools, ran, strict=True))


@pytest.mark.parametrize("lines", [400, 401])
def test_lint_fails_on_a_file_of_more_than_400_lines(checkout, lines):
    (checkout.folder / "long.py").write_text("\n" * lines)
    code, out, err = checkout.run("lint")
    assert code == (lines > 400)
    assert ("long.py: 401 lines" in out) == (lines > 400)
    assert f"{lines - 400} of 6 checks failed" in err
