"""Collects what an image needs to run a package in a venv: `python -I -S rootfs.py VENV PACKAGE FOLDER`.

This Python and its library, the venv, the package in it, and the shared objects that all of them link to, each under
FOLDER where it is here. Nothing else, and nothing of it is run: see Dockerfile.
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

_UNUSED: Final = shutil.ignore_patterns(
    *("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data", "config-*"),
    *("site-packages", "dist-packages", "_tkinter*", "_test*", "_curses*", "curses", "readline*", "nis*", "_crypt*"),
    "*.opt-?.pyc",
)
_HOOKS: Final = ("*.pth", "sitecustomize.py", "usercustomize.py")  # what Python runs at each start
_FILES: Final = {
    "etc/passwd": "nonroot:x:65532:65532::/:/sbin/nologin\n",
    "etc/group": "nonroot:x:65532:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
_LINKED: Final = re.compile(r"(?:=> |^\s+)(/\S+) \(0x", re.MULTILINE)


def main(venv: Path, package: Path, root: Path) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    packages = venv / "lib" / library.name / "site-packages"
    shutil.copytree(library, _under(root, library), ignore=_UNUSED)
    shutil.copytree(packages, _under(root, packages))
    shutil.copytree(package, _under(root, packages) / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    if hooks := [path.name for hook in _HOOKS for path in _under(root, packages).glob(hook)]:
        raise SystemExit(f"would run at each start: {', '.join(hooks)}")
    _copy(venv / "pyvenv.cfg", root)
    python = venv / "bin/python"
    while python.is_symlink():  # from the venv's to the one that it was made with
        _copy(python, root)
        python = python.parent / python.readlink()
    _copy(python, root)
    for path in [python, *root.rglob("*.so*")]:
        for needed in _linked(path):
            if not needed.is_relative_to(root):  # else it came with its package
                _copy(needed.resolve(), root, name=needed)
    _copy(Path("/etc/ld.so.cache"), root)
    for name, text in _FILES.items():
        (root / name).write_text(text)
    compileall.compile_dir(root, quiet=1, stripdir=str(root), maxlevels=99)  # nothing can be written when it runs


def _linked(path: Path) -> list[Path]:
    """The shared objects that a file needs, and the loader."""
    done = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return [Path(found) for found in _LINKED.findall(done.stdout)]


def _under(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _under(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _copy(path: Path, root: Path, *, name: Path | None = None) -> None:
    """A file (of a link the link) to where it is, or to where it is found by another name."""
    there = _under(root, name or path)
    if not os.path.lexists(there):
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, there, follow_symlinks=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
