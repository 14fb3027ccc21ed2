"""What the project promises about itself: versions, lock, security, documentation."""

import ast
import functools
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ebm_ppl

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements-dev.lock").read_text()
SOURCES = sorted((ROOT / "ebm_ppl").rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


# --- the lock


def requirements():
    project = PROJECT["project"]
    groups = [
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *PROJECT["dependency-groups"].values(),
    ]
    needed = {Requirement(text) for group in groups for text in group} | {
        Requirement(text) for text in PROJECT["build-system"]["requires"]
    }
    return {one for one in needed if one.extras != {"cuda13"}}  # for machines with a GPU, and not a tool


@functools.cache
def locked():
    pins = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", LOCK, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def test_the_lock_names_no_address_and_hashes_everything():
    assert "://" not in LOCK
    assert "--index" not in LOCK
    blocks = re.split(r"^(?=\S)", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) > 50
    assert all("--hash=sha256:" in block for block in blocks)


@pytest.mark.parametrize("requirement", sorted(requirements(), key=str), ids=str)
def test_the_lock_holds_what_the_project_names(requirement):
    name = canonicalize_name(requirement.name)
    assert name in locked(), "remake requirements-dev.lock: see docs/CONTRIBUTING.md"
    assert requirement.specifier.contains(locked()[name], prereleases=True)


# --- security


def violations(source):
    """Imports and calls that would let a file or a string run code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(node.func.id)
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found += [] if isinstance(node.value, ast.Constant) and node.value.value is False else ["allow_pickle"]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_file_unpickles_or_evaluates(path):
    assert not violations(path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import numpy, cloudpickle.cloudpickle",
        "from marshal import loads",
        "x = eval('1')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "np.load('x', allow_pickle=flag)",
    ],
)
def test_the_security_check_notices(source):
    assert violations(source)


def test_run_time_opens_no_socket():
    """A run from start to diagnosis with sockets forbidden."""
    code = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise AssertionError('a socket was opened')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import jax, jax.numpy as jnp, ebm_ppl as ebm\n"
        "energy = ebm.energies.Gaussian(jnp.zeros(1), jnp.eye(1))\n"
        "draws = ebm.sample(energy, key=jax.random.key(0), num_warmup=100, num_samples=100, progress_bar=False)\n"
        "ebm.diagnose(draws)\n"
        "import numpyro.infer\n"
        "print(ebm.EnergyDistribution(energy).log_prob(jnp.zeros(1)).shape)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "()\n"), done.stderr


# --- one version, one license, types


def citation(field):
    return re.search(rf"^{field}: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]


def test_one_version_everywhere():
    assert ebm_ppl.__version__ == PROJECT["project"]["version"] == citation("version")
    heads = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == "Unreleased"


def test_one_license():
    assert PROJECT["project"]["license"] == citation("license") == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_types_are_shipped():
    package = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert package == ["ebm_ppl"]
    assert (ROOT / "ebm_ppl" / "py.typed").is_file()
    assert (ROOT / "ebm_ppl" / "__init__.pyi").is_file()
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]


# --- public names

STUB = ast.parse((ROOT / "ebm_ppl" / "__init__.pyi").read_text())
NAMES = [alias.asname for node in STUB.body if isinstance(node, ast.ImportFrom) for alias in node.names]
PAGES = "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "api").glob("*.md")))


@pytest.mark.parametrize("name", NAMES)
def test_public_name_imports_and_is_documented_once(name):
    assert getattr(ebm_ppl, name).__doc__
    assert name in dir(ebm_ppl)
    assert len(re.findall(rf"^::: ebm_ppl\.{name}$", PAGES, re.MULTILINE)) == 1


def test_the_stub_is_sorted_and_says_every_name_once():
    lines = [ast.unparse(node) for node in STUB.body]
    assert len(NAMES) == len(set(NAMES))
    assert lines == sorted(lines)


def test_every_documented_name_exists():
    for entry in re.findall(r"^::: (ebm_ppl\S*)$", PAGES, re.MULTILINE):
        value = ebm_ppl
        for part in entry.split(".")[1:]:
            value = getattr(value, part)


def test_import_is_lazy():
    """`import ebm_ppl` pays neither for NumPyro nor for ArviZ."""
    code = "import sys, ebm_ppl; print({'numpyro', 'arviz', 'jax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_documentation_builds_strictly_and_fetches_nothing(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    fetched = re.compile(r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//|<link[^>]* href=\"?(?:https?:)?//")
    assert not [name for name, page in pages.items() if fetched.search(page)]
    styles = "".join(path.read_text() for path in tmp_path.rglob("*.css"))
    assert not re.search(r"url\(\"?(?:https?:)?//|@import", styles)
    assert "<math" in pages["api/energies.html"]
    assert not [name for name, page in pages.items() if "arithmatex" in page]
