"""Virtual environments from pinned locks: the process runtime's engine, supervisord, the test client.

A lock is a pip requirements file with every package pinned, installed with ``--no-deps``. Its header may say which
Python it is for (``# python: 3.11``). Packages with a local version (``torch==2.13.0+cpu``) may come from an extra index;
only they are looked for there, so that an unreachable extra index costs one time-out, not one per package.

uv installs a lock where it can, and the result is compared with the lock. Whatever stops uv, pip does it all again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..files import require_free, write_atomic
from .uv import PipConfiguration, Say, fetch_uv, install_with_uv, is_fetched, read_pip_configuration

STAMP = "longhaul-environment.json"
LOCK_PYTHON = re.compile(r"^#\s*python:\s*(\d+)\.(\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Lock:
    """A parsed lock: requirement lines, and the Python it was made for (``None``: any that is new enough)."""

    requirements: tuple[str, ...]
    python: tuple[int, int] | None
    sha256: str
    pinned: bool = True

    @property
    def from_extra_index(self) -> tuple[str, ...]:
        """Lines that only an extra index (or local wheels) can serve: those with a local version."""
        return tuple(r for r in self.requirements if "+" in r.partition("==")[2])


def parse_lock(text: str) -> Lock:
    """Read a lock. UserError for a line that is not pinned."""
    lines = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#"))
    for line in lines:
        if not re.fullmatch(r"[A-Za-z0-9._-]+(\[[A-Za-z0-9,._-]+\])?==[A-Za-z0-9.+!_-]+", line):
            raise UserError(f"lock line {line!r}", "name==version", "pin it, or use engine_requirements for unpinned installs")
    if not lines:
        raise UserError("an empty lock", "at least one name==version line", "check engine_lock_file")
    match = LOCK_PYTHON.search(text)
    digest = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
    return Lock(lines, (int(match[1]), int(match[2])) if match else None, digest)


def requirements_lock(requirements: Sequence[str]) -> Lock:
    """Unpinned requirements, resolved by pip with their dependencies: for versions we ship no lock of."""
    lines = tuple(requirements)
    return Lock(lines, None, hashlib.sha256("\n".join(lines).encode()).hexdigest(), pinned=False)


def python_version(path: str) -> tuple[int, int] | None:
    """(major, minor) of an interpreter that really runs and can make environments; ``None`` otherwise (shims often fail)."""
    found = _probe(path)
    return found[0] if found else None


def _probe(path: str) -> tuple[tuple[int, int], str] | None:
    # The base executable: an environment made from an environment would die with it.
    program = "import sys, venv; print(*sys.version_info[:2], getattr(sys, '_base_executable', sys.executable))"
    try:
        found = subprocess.run([path, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = found.stdout.split(maxsplit=2)
    if found.returncode != 0 or len(words) != 3:
        return None
    return (int(words[0]), int(words[1])), words[2].strip()


def _on_path(name: str) -> list[str]:
    # All of PATH, not only the first: a shim that does not run may hide the interpreter behind it.
    if name.startswith("/"):
        return [name]
    folders = os.get_exec_path()
    return list(dict.fromkeys(f for folder in folders if (f := shutil.which(name, path=folder)) is not None))


def find_python(candidates: Sequence[str], exact: tuple[int, int] | None, least: tuple[int, int] = (3, 10)) -> str:
    """The base interpreter of the first candidate that runs and fits. UserError lists what was tried."""
    return _choose(candidates, exact, least, pip=True)[1]


def _choose(
    candidates: Sequence[str], exact: tuple[int, int] | None, least: tuple[int, int] = (3, 10), *, pip: bool
) -> tuple[str, str]:
    """(candidate as found, its base interpreter). ``pip``: it must be able to bring pip into an environment by itself."""
    tried: list[str] = []
    for path in (found for name in candidates for found in _on_path(name)):
        probed = _probe(path)
        version = probed[0] if probed else None
        fits = version is not None and (version == exact if exact else version >= least)
        if probed and fits and (not pip or has_ensurepip(probed[1])):
            return path, probed[1]
        said = ".".join(map(str, version)) if version else "does not run, or lacks venv"
        tried.append(f"{path} ({said}{', lacks ensurepip' if fits else ''})")
    need = f"Python {exact[0]}.{exact[1]}" if exact else f"Python {least[0]}.{least[1]} or newer"
    raise UserError(
        "; ".join(tried) or "no Python among " + ", ".join(candidates),
        f"{need} with venv and ensurepip on the host",
        f"install python{exact[0]}.{exact[1]} and its venv package" if exact else "install python3 and python3-venv, or name one",
    )


def has_ensurepip(python: str) -> bool:
    """Can this interpreter put pip into a new environment by itself? Debian's cannot without its venv package."""
    return subprocess.run([python, "-c", "import ensurepip"], capture_output=True, timeout=30, check=False).returncode == 0


def package_folders(python: str) -> tuple[str, ...]:
    """Where an interpreter that lives in a virtual environment finds its packages; empty for a plain interpreter.

    ``--system-site-packages`` shows the base interpreter's packages only. GPU images often keep torch in an environment of
    their own, and those packages are the ones meant.
    """
    program = (
        "import sys; print(*[p for p in sys.path if p.endswith('-packages')] if sys.prefix != sys.base_prefix else [], sep='\\n')"
    )
    found = subprocess.run([python, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    return tuple(line for line in found.stdout.splitlines() if line) if found.returncode == 0 else ()


def find_pip_wheel(wheelhouse: str | None) -> Path | None:
    """The newest pip in a wheelhouse: a wheel that Python can run as it is."""
    found = (
        sorted(Path(wheelhouse).glob("pip-*.whl"), key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])
        if wheelhouse
        else []
    )
    return found[-1] if found else None


def is_built(path: Path, lock: Lock) -> bool:
    """Is the environment complete and made from this lock? The stamp is written last."""
    try:
        stamp = json.loads((path / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(stamp.get("lock_sha256") == lock.sha256) and (path / "bin" / "python").exists()


def build_environment(
    path: Path,
    lock: Lock,
    candidates: Sequence[str],
    *,
    say: Say,
    extra_index_urls: Sequence[str] = (),
    wheelhouse: str | None = None,
    system_site_packages: bool = False,
    needed_bytes: int = 0,
    pip_timeout_s: int = 60,
    tools: Path | None = None,
    with_pip: bool = True,
) -> str:
    """Make ``path`` an environment that holds exactly the lock. Returns the base interpreter used.

    A half-made environment (no stamp) is thrown away first. ``wheelhouse``: a folder of wheels; pip then asks no index.
    ``tools``: a folder where uv lies or is brought to; without it pip installs. ``with_pip``: false where nobody will want pip in it;
    bringing pip takes longer than everything else of a small environment.
    """
    pip_wheel = find_pip_wheel(wheelhouse)
    candidate, base = _choose(candidates, lock.python, pip=pip_wheel is None)
    if needed_bytes:
        require_free(
            path, needed_bytes, f"the environment {path.name}", "free space, or set longhaul_home to a larger file system"
        )
    if wheelhouse and not Path(wheelhouse).is_dir():
        raise UserError(f"no folder {wheelhouse}", "a wheelhouse with the lock's wheels", "set engine_wheelhouse, or build one")
    if path.exists():
        shutil.rmtree(path)
    say(f"installing: making {path.name} with {base}")
    # Versions without pins are pip's to choose, and a wheelhouse may hold no uv.
    quick = tools if lock.pinned and not wheelhouse else None
    configuration = read_pip_configuration(base) if quick and not with_pip and is_fetched(quick) else None
    borrowed = package_folders(candidate) if system_site_packages else ()
    command = [base, "-m", "venv"]
    command += ["--system-site-packages"] if system_site_packages and not borrowed else []
    command += ["--without-pip"] if pip_wheel or configuration else []
    _run([*command, str(path)], "python -m venv", say=None)
    python = str(path / "bin" / "python")
    if borrowed:
        _borrow(path, python, borrowed)
    total = len(lock.requirements)
    if not quick or not _install_quickly(path, python, lock, quick, configuration, extra_index_urls, say):
        if configuration:
            _run([python, "-m", "ensurepip", "--default-pip"], "python -m ensurepip", say=None)
        _install_with_pip(
            [python, *([f"{pip_wheel}/pip"] if pip_wheel else ["-m", "pip"])],
            lock,
            extra_index_urls,
            wheelhouse,
            pip_timeout_s,
            say,
        )
    stamp = {"lock_sha256": lock.sha256, "packages": total, "python": base}
    write_atomic(path / STAMP, json.dumps(stamp, indent=1) + "\n")
    say(f"installing: {path.name} complete, {total} packages")
    return base


def _install_quickly(
    path: Path,
    python: str,
    lock: Lock,
    tools: Path,
    configuration: PipConfiguration | None,
    extra_index_urls: Sequence[str],
    say: Say,
) -> bool:
    """Install a lock with uv. False where uv is not to be had, failed, or left another set than the lock's.

    Without a ``configuration``, the environment's own pip is asked for it.
    """
    configuration = configuration or read_pip_configuration(python)
    uv = fetch_uv(python, tools) if configuration else None
    if uv is None or configuration is None:
        return False
    # Beside the environment: on the same file system uv links its files instead of copying gigabytes.
    cache = path.with_name(f".{path.name}.uv")

    def install(*words: str) -> bool:
        return install_with_uv(uv, python, ["--no-deps", *words], configuration, say=say, cache=cache)

    try:
        # uv stops at an index that does not answer, where pip goes on: the extra one is asked only if the others lack something.
        extra = [w for url in extra_index_urls for w in ("--extra-index-url", url)] if lock.from_extra_index else []
        done = install(*lock.requirements)
        if not done and extra:
            rest = [r for r in lock.requirements if r not in lock.from_extra_index]
            done = install(*extra, *lock.from_extra_index) and (not rest or install(*rest))
        return done and not missing_from(path, lock)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        # uv leaves its lock behind, writable by everyone.
        (path / ".lock").unlink(missing_ok=True)


def missing_from(path: Path, lock: Lock) -> list[str]:
    """The lock's lines that an environment does not hold, by the names of its ``*.dist-info`` folders."""
    found = {_same_name(folder.name.removesuffix(".dist-info")) for folder in path.glob("lib/python3*/site-packages/*.dist-info")}
    return [r for r in lock.requirements if _same_name(re.sub(r"\[.*?\]", "", r).replace("==", "-")) not in found]


def _same_name(text: str) -> str:
    """``Foo.Bar-1.0+cpu`` as every tool would write it: names are compared without case and separators (PEP 503)."""
    name, _, version = text.rpartition("-")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version.lower()}"


def _install_with_pip(
    pip: list[str], lock: Lock, extra_index_urls: Sequence[str], wheelhouse: str | None, timeout_s: int, say: Say
) -> None:
    """Install a lock, or unpinned requirements, with pip. UserError names what could not be installed."""
    pip = [*pip, "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--timeout", str(timeout_s)]
    if lock.pinned:
        pip.append("--no-deps")
    if wheelhouse:
        pip += ["--no-index", "--find-links", wheelhouse]
    special = lock.from_extra_index
    plain = [r for r in lock.requirements if r not in special]
    if special:
        extra = [] if wheelhouse else [w for url in extra_index_urls for w in ("--extra-index-url", url)]
        say(f"installing: {', '.join(special)}")
        _run([*pip, *extra, *special], f"pip install {' '.join(special)}", say=None, required_from=extra_index_urls)
    if plain:
        counter = _PipCounter(say, len(lock.requirements))
        _run([*pip, *plain], "pip install", say=counter)


def _borrow(path: Path, python: str, folders: Sequence[str]) -> None:
    """Let the environment see ``folders`` after its own packages, with what their .pth files add."""
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", program], capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    lines = [f"import site; site.addsitedir({folder!r})" for folder in folders]
    write_atomic(Path(own) / "longhaul-borrowed.pth", "\n".join(lines) + "\n")


class _PipCounter:
    """Turns pip's own lines into one progress line every ten packages."""

    def __init__(self, say: Say, total: int) -> None:
        self._say, self._total, self._seen = say, total, 0

    def __call__(self, line: str) -> None:
        if line.startswith("Collecting "):
            self._seen += 1
            if self._seen % 10 == 0:
                self._say(f"installing: fetched {self._seen}/{self._total} packages")
        elif line.startswith("Installing collected packages"):
            self._say(f"installing: unpacking {self._total} packages")


def _run(command: Sequence[str], what: str, *, say: Say | None, required_from: Sequence[str] = ()) -> None:
    tail: list[str] = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if process.stdout is None:
        raise RuntimeError("no pipe")
    with process.stdout as out:
        for raw in out:
            line = raw.rstrip()
            if say:
                say(line)
            if line and not line.startswith("WARNING"):
                tail = [*tail[-20:], line]
    if process.wait() != 0:
        errors = [x for x in tail if "ERROR" in x or "error:" in x] or tail[-1:] or ["no output"]
        if any("No space left" in x for x in tail):
            raise UserError("no space left on the device", f"room for {what}", "free space, or set longhaul_home elsewhere")
        where = ", ".join(required_from) or "the package index or wheelhouse"
        raise UserError(
            f"{what} failed: {errors[-1]}", f"every package of the lock from {where}", "check the index, proxy or wheelhouse"
        )
