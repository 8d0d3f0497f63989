"""Real hosts to test against, on one machine: systemd, sshd and room for a nested Docker engine in each.

``Bed`` starts a Docker daemon of its own (own data, own sockets, own bridge; the machine's Docker, if any, is not touched),
a registry that the hosts can reach, and hosts made from one cached Debian image. Leaving the context stops all of it, by pid.

    with Bed() as bed:
        hosts = bed.hosts(3, ports=(8000,))
        inventory = bed.write_inventory(tmp_path / "inventory", {"engines": hosts})

By hand: ``PYTHONPATH=tests python -m testbed.bed up 3`` makes hosts, prints the inventory's path and waits for Ctrl-C.

Needs root, Debian or Ubuntu (packages that are missing are installed with apt-get), overlayfs, bridges and iptables;
``why_not()`` says what is missing. Nothing but 127.0.0.1 and the bed's own bridge is listened on.

The bed leaves the machine as it found it. Every host has a cgroup namespace and mounts of its own below ``/longhaul-bedN``, so its
systemd neither makes folders in the machine's /sys/fs/cgroup nor remounts it read-only, as systemd does with what it finds there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from support import cache, debian

REPO = Path(__file__).resolve().parents[2]

# Of the machine, not of the checkout: two checkouts must not take the same ports, bridges and addresses.
LOCKS = Path("/run/lock/longhaul-testbed")

SUITE = "bookworm"
BASE_PACKAGES = (
    "systemd,systemd-sysv,dbus,openssh-server,python3,python3-apt,sudo,ca-certificates,"
    "iproute2,iptables,curl,procps,kmod,libpam-systemd"
)
# What role container_runtime installs on a bare host; an image that has it already spares a test that is about something else.
DOCKER_PACKAGES = "docker.io,apparmor,pigz,python3-requests"
# Small: what a container of an engine needs, and no more. One list for the stand-in and the real CPU engine: one root file system.
PYTHON_PACKAGES = "python3,ca-certificates,libnuma1,libgomp1"
# What `apt-get install` brings when a program is missing.
PROGRAMS = {
    "dockerd": "docker.io",
    "containerd": "containerd",
    "docker": "docker.io",
    "mmdebstrap": "mmdebstrap",
    "docker-registry": "docker-registry",
    "iptables": "iptables",
    "ip": "iproute2",
    "ssh": "openssh-client",
}
# Docker mounts the host's own part of the cgroup tree read-only; systemd must write there. A host sees nothing above its part.
INIT = """#!/bin/sh
while read -r _ at type _; do
  case $type in cgroup*) mount -o remount,bind,rw "$at" || exit 1 ;; esac
done < /proc/mounts
mount -o remount,bind,rw /sys/fs/cgroup || exit 1
exec /lib/systemd/systemd
"""
CPU_WEIGHT = 16
CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_RESOURCE = 12, 21, 24
SLOTS = 16
INOTIFY, INOTIFY_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances"), 2048
FIRST_PORT, PORTS_PER_SLOT = 21000, 700


class BedError(RuntimeError):
    """The bed could not be made, or a step on it failed; the text carries the command and the end of its output."""


def _run(
    argv: Sequence[str | Path], *, timeout_s: float = 120, check: bool = True, stdin: BinaryIO | int | None = subprocess.DEVNULL
) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(words, stdin=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as late:
        raise BedError(f"{' '.join(words[:6])} took more than {timeout_s:.0f} s") from late
    if check and done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise BedError(f"{' '.join(words[:12])} exited {done.returncode}: {tail}")
    return done


def why_not() -> str | None:
    """Why no bed can be made here, in one line; None where it can. Installs nothing."""
    if sys.platform != "linux":
        return f"the testbed needs Linux, this is {sys.platform}"
    if os.geteuid() != 0:
        return "the testbed needs root (it starts a Docker daemon and makes a bridge)"
    if not all(_has_capability(number) for number in (CAP_NET_ADMIN, CAP_SYS_ADMIN)):
        return "the testbed needs the right to mount and to make namespaces and bridges (CAP_SYS_ADMIN, CAP_NET_ADMIN)"
    if not Path("/proc/sys/net/bridge").exists() and not _bridge_works():
        return "the testbed needs a kernel with network bridges"
    if "overlay" not in Path("/proc/filesystems").read_text():
        subprocess.run(["modprobe", "overlay"], check=False, capture_output=True)
        if "overlay" not in Path("/proc/filesystems").read_text():
            return "the testbed needs overlayfs"
    if not Path("/sys/fs/cgroup").is_mount() and not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return "the testbed needs cgroups under /sys/fs/cgroup"
    # One tree (v2), or one for each controller under a folder that need not be writable itself (v1).
    if not any(os.access(Path("/sys/fs/cgroup") / name, os.W_OK) for name in ("", "memory", "cpu")):
        return "the testbed needs a writable /sys/fs/cgroup"
    lacking = debian.why_not(PROGRAMS)
    return f"the testbed needs more programs: {lacking}" if lacking else None


def _bridge_works() -> bool:
    if shutil.which("ip") is None:
        return shutil.which("apt-get") is not None
    name = f"lhtry{os.getpid() % 100000}"
    made = subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=False, capture_output=True)
    subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)
    return made.returncode == 0


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _rootfs(packages: str, variant: str, hooks: Sequence[str] = ()) -> Path:
    """A Debian root file system as a tar, made once per set of packages (about 30 s) and kept in the cache."""
    packages = ",".join(sorted(set(packages.split(","))))
    slim = [f"--dpkgopt=path-exclude={path}" for path in ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")]
    # A host of ours need not survive a power cut, and syncing every file is half of an installation's time; nor read descriptions.
    slim += ["--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Languages "none"']
    # By content, not by name: two names for the same set of packages are made once.
    made_from = cache.digest(SUITE, packages, variant, *slim, *hooks)
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    keys = [f"--keyring={keyring}"] if keyring.exists() else []
    words = ["mmdebstrap", "--quiet", "--format=tar", f"--variant={variant}", f"--include={packages}", *slim, *keys]
    words += [f"--customize-hook={hook}" for hook in hooks]
    return cache.entry(f"rootfs/{made_from}.tar", lambda target: _run([*words, SUITE, target], timeout_s=900))


def make_images() -> None:
    """The root file systems that every test needs, side by side: from nothing it takes as long as the larger one."""
    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(_base_rootfs), pool.submit(_rootfs, PYTHON_PACKAGES, "minbase")]
        for one in made:
            one.result()


def _base_rootfs(installed: bool = False) -> Path:
    return _rootfs(
        f"{BASE_PACKAGES},{DOCKER_PACKAGES}" if installed else BASE_PACKAGES,
        "minbase",
        (
            # Every host gets its own keys when it is made; none may share the image's.
            'rm -f "$1"/etc/ssh/ssh_host_*',
            'mkdir -p "$1"/etc/ssh/sshd_config.d && printf "%s\\n" "HostKey /etc/testbed/host_key"'
            ' "AuthorizedKeysFile .ssh/authorized_keys /etc/testbed/authorized_keys" "PermitRootLogin prohibit-password"'
            ' "PasswordAuthentication no" "UseDNS no" "MaxStartups 100:30:200" > "$1"/etc/ssh/sshd_config.d/testbed.conf',
            # Units that make no sense in a container and only cost start-up time.
            'chroot "$1" systemctl mask systemd-udevd.service systemd-udev-trigger.service getty@tty1.service'
            " apt-daily.timer apt-daily-upgrade.timer systemd-timesyncd.service e2scrub_reap.service",
            'chroot "$1" systemctl set-default multi-user.target',
            f"printf '%s' '{INIT}' > \"$1\"/sbin/testbed-init && chmod 755 \"$1\"/sbin/testbed-init",
        ),
    )


@dataclass(frozen=True)
class Host:
    """One host: a container that runs systemd and sshd. ``ports`` maps a port in the host to one on 127.0.0.1."""

    name: str
    container: str
    ssh_port: int
    ports: Mapping[int, int]
    bed: Bed = field(repr=False, compare=False)

    def url(self, port: int) -> str:
        """Where a port of this host is reached from the controller."""
        return f"http://127.0.0.1:{self.ports[port]}"

    def run(self, command: str, *, check: bool = True, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a shell line as root in the host, past SSH (``docker exec``): works while SSH is cut."""
        return self.bed.docker("exec", self.container, "sh", "-c", command, check=check, timeout_s=timeout_s)

    def read(self, path: str) -> str:
        return self.run(f"cat '{path}'").stdout

    def write(self, path: str, text: str) -> None:
        with tempfile.TemporaryFile() as handle:
            handle.write(text.encode())
            handle.seek(0)
            self.bed.docker(
                "exec", "-i", self.container, "sh", "-c", f"mkdir -p \"$(dirname '{path}')\"; cat > '{path}'", stdin=handle
            )

    # Faults. Each has its way back; all can be called twice.

    def cut_ssh(self) -> None:
        """Drop every packet to sshd: open connections hang, new ones time out, as when a cable is pulled."""
        self.restore_ssh()
        self.run("iptables -I INPUT -p tcp --dport 22 -j DROP && iptables -I OUTPUT -p tcp --sport 22 -j DROP")

    def restore_ssh(self) -> None:
        self.run(
            "while iptables -D INPUT -p tcp --dport 22 -j DROP 2>/dev/null; do :; done;"
            " while iptables -D OUTPUT -p tcp --sport 22 -j DROP 2>/dev/null; do :; done"
        )

    def kill_dockerd(self) -> None:
        """SIGKILL to the nested Docker daemon; systemd starts it again by itself after its RestartSec."""
        self.run("systemctl kill --signal=KILL --kill-whom=main docker.service || systemctl kill -s KILL docker.service")

    def stop_dockerd(self) -> None:
        """Stop the nested Docker daemon for good (also its socket, which would start it again)."""
        self.run("systemctl stop docker.socket docker.service", timeout_s=90)

    def start_dockerd(self) -> None:
        self.run("systemctl reset-failed docker.service; systemctl start docker.socket docker.service", timeout_s=90)

    def small_disk(self, path: str, size_mib: int) -> None:
        """Put a file system of ``size_mib`` under ``path`` with what was there; undo with ``unmount``."""
        self.run(
            f"set -e; mkdir -p '{path}' /run/testbed-disk; mount -t tmpfs -o size={size_mib}m tmpfs /run/testbed-disk;"
            f" cp -a '{path}'/. /run/testbed-disk/; mount --move /run/testbed-disk '{path}' 2>/dev/null"
            f" || {{ mount --bind /run/testbed-disk '{path}'; umount /run/testbed-disk; }}"
        )

    def fill(self, path: str) -> None:
        """Fill the file system that holds ``path`` (use after ``small_disk``) until it says ENOSPC."""
        self.run(f"dd if=/dev/zero of='{path}/.testbed-fill' bs=64k 2>/dev/null; sync; true")

    def unfill(self, path: str) -> None:
        self.run(f"rm -f '{path}/.testbed-fill'")

    def unmount(self, path: str) -> None:
        """Take the small disk away again; files written while it was there go with it."""
        self.run(f"umount '{path}'")


class Bed:
    """A Docker daemon, a registry and hosts, all of this process; a context manager.

    ``registry`` is ``ADDRESS:PORT``, reachable under that name from the controller's daemon and from every host.
    Several beds can run at once: each takes a free slot (its own data directory, bridge and subnet).
    """

    def __init__(self) -> None:
        self.registry = ""
        self._slot = -1
        self._lock: Any = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._containers: list[str] = []
        self._subnet = ""
        self._run_dir = Path()
        self._data = Path()
        self._old_handler: Any = None
        self._names = 0
        self._last_port = 0

    # Life

    def __enter__(self) -> Bed:
        reason = why_not()
        if reason:
            raise BedError(reason)
        debian.install(PROGRAMS)
        make_images()
        self._take_slot()
        if threading.current_thread() is threading.main_thread():
            self._old_handler = signal.signal(signal.SIGTERM, _exit_on_term)
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_slot(self) -> None:
        LOCKS.mkdir(parents=True, exist_ok=True)
        for slot in range(SLOTS):
            if self._lock is None and self._claim(slot):
                continue
            # The owner of another slot may have been killed, and the slot not be wanted again for days.
            if _state_file(slot).exists():
                reap(slot)
        if self._lock is None:
            raise BedError(f"all {SLOTS} testbed slots of this machine are in use ({LOCKS})")
        self._data = cache.root() / "testbed" / f"slot-{self._slot}"
        self._data.mkdir(parents=True, exist_ok=True)
        # A short path: the name of a Unix socket ends at 107 characters.
        self._run_dir = Path(tempfile.mkdtemp(prefix=f"lhbed{self._slot}-"))
        _state_file(self._slot).write_text(json.dumps({"run_dir": str(self._run_dir), "data": str(self._data)}))
        # Nobody can clean up after a SIGKILL to itself: this process does, when its standard input ends.
        self._guard = subprocess.Popen(
            command("reap", str(self._slot), python=(sys.executable, "-S")),
            cwd=REPO / "tests",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _claim(self, slot: int) -> bool:
        """Own a slot if nobody does, and remove what a killed owner left in it."""
        handle = _slot_lock(slot).open("w")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            return False
        state: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(_state_file(slot).read_text())
        if not state and Path(f"/sys/class/net/lhbed{slot}").exists():
            handle.close()  # somebody's, and nothing says whose
            return False
        self._slot, self._lock = slot, handle
        self._bridge = f"lhbed{slot}"
        self._prefix = f"10.231.{slot}"
        self._subnet = f"{self._prefix}.0/24"
        if state:
            self._run_dir, self._data = Path(state["run_dir"]), Path(state["data"])
            self._sweep()
        return True

    def _start(self) -> None:
        _raise_inotify_limit()
        self._make_cgroups()
        self._network(add=True)
        containerd = self._run_dir / "containerd.sock"
        (self._run_dir / "containerd.toml").write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        self._spawn(
            "containerd",
            ["containerd", "--config", self._run_dir / "containerd.toml", "--address", containerd, "--log-level", "warn"],
            ["--root", self._data / "containerd", "--state", self._run_dir / "containerd"],
        )
        _wait("containerd", containerd.exists, 30, self._log("containerd"))
        (self._run_dir / "daemon.json").write_text(
            json.dumps(
                {
                    "data-root": str(self._data / "docker"),
                    "exec-root": str(self._run_dir / "exec"),
                    "hosts": [f"unix://{self._socket}"],
                    "pidfile": str(self._run_dir / "dockerd.pid"),
                    "containerd": str(containerd),
                    "bridge": self._bridge,
                    # The machine may have a Docker of its own: its chains are not ours to rewrite.
                    "iptables": False,
                    "ip-masq": False,
                    # Whatever the machine's own driver is: a tree under our name, so that the sweep finds all of it.
                    "exec-opts": ["native.cgroupdriver=cgroupfs"],
                    "cgroup-parent": self._cgroup,
                    "default-cgroupns-mode": "private",
                    "userland-proxy": True,
                    "insecure-registries": [self._subnet],
                    "storage-driver": "overlay2",
                    "log-level": "warn",
                }
            )
        )
        self._spawn("dockerd", ["dockerd", "--config-file", self._run_dir / "daemon.json"])
        _wait("dockerd", lambda: self.docker("version", check=False).returncode == 0, 60, self._log("dockerd"))
        left = self.docker("ps", "-aq").stdout.split()
        if left:
            self.docker("rm", "-fv", *left)
        # What tests committed and tagged anew, and what a killed bed left, would fill the disk in time.
        self.docker("image", "prune", "-f")
        self.docker("volume", "prune", "-f")
        bases = self.docker("images", "--filter", "reference=testbed/*", "--format", "{{.Repository}}").stdout.split()
        kept = {path.stem for path in (cache.root() / "rootfs").glob("*.tar")}
        stale = [name for name in bases if name.removeprefix("testbed/") not in kept]
        if stale:
            self.docker("rmi", "-f", *stale, check=False)
        self._start_registry()

    def _start_registry(self) -> None:
        address = f"{self._prefix}.1:5000"
        config = {
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(self._data / "registry")}, "delete": {"enabled": True}},
            "http": {"addr": address},
        }
        path = self._run_dir / "registry.yml"
        path.write_text(json.dumps(config))  # JSON is YAML
        self._spawn("registry", ["docker-registry", "serve", path])
        host, port = address.split(":")
        _wait("the registry", lambda: _answers(host, int(port)), 30, self._log("registry"))
        self.registry = address

    def _spawn(self, name: str, *words: Sequence[str | Path]) -> None:
        with self._log(name).open("wb") as log:
            # An own session: Ctrl-C in the terminal must not reach the daemons before the hosts are removed.
            child = subprocess.Popen(
                [str(word) for part in words for word in part],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append((name, child))

    def _log(self, name: str) -> Path:
        return self._run_dir / f"{name}.log"

    @property
    def _socket(self) -> Path:
        return self._run_dir / "docker.sock"

    def _network(self, *, add: bool) -> None:
        """The bridge, and the three rules that let its hosts out; removed exactly as they were added."""
        mark = ["-m", "comment", "--comment", f"longhaul-testbed-{self._slot}"]
        rules = [
            ["-t", "nat", "POSTROUTING", "-s", self._subnet, "!", "-o", self._bridge, *mark, "-j", "MASQUERADE"],
            ["-t", "filter", "FORWARD", "-i", self._bridge, *mark, "-j", "ACCEPT"],
            ["-t", "filter", "FORWARD", "-o", self._bridge, *mark, "-j", "ACCEPT"],
        ]
        for table in rules:
            while _run(["iptables", "-w", *table[:2], "-D", *table[2:]], check=False).returncode == 0:
                pass
        _run(["ip", "link", "del", self._bridge], check=False)
        if add:
            _run(["ip", "link", "add", self._bridge, "type", "bridge"])
            _run(["ip", "addr", "add", f"{self._prefix}.1/24", "dev", self._bridge])
            _run(["ip", "link", "set", self._bridge, "up"])
            for table in rules:
                _run(["iptables", "-w", *table[:2], "-I", *table[2:]])

    def close(self) -> None:
        """Stop and remove everything this bed started. Safe to call twice."""
        if self._slot < 0:
            return
        try:
            with contextlib.suppress(BedError):
                if self._socket.exists():
                    left = self.docker("ps", "-aq", timeout_s=30).stdout.split()
                    if left:
                        self.docker("rm", "-fv", *left, timeout_s=120)
            for _, child in reversed(self._processes):
                child.terminate()
                try:
                    child.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
            self._sweep()
        finally:
            self._processes.clear()
            if self._old_handler is not None:
                signal.signal(signal.SIGTERM, self._old_handler)
                self._old_handler = None
            if self._guard is not None and self._guard.stdin is not None:
                self._guard.stdin.write(b"done")
                self._guard.stdin.close()
                self._guard.wait()
                self._guard = None
            self._slot = -1
            self._lock.close()
            self._lock = None
            _restore_inotify_limit()

    def _sweep(self) -> None:
        """Kill by pid whatever still runs out of this slot's directories, then take away mounts, bridge, rules and files."""
        ids = [path.name for path in (self._data / "docker" / "containers").glob("*")]
        marks = [f"{self._run_dir}/".encode(), f"{self._cgroup}/".encode(), *(name.encode() for name in ids)]
        for _ in range(20):
            pids = [pid for pid in _pids() if _belongs(pid, marks)]
            if not pids:
                break
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith((f"{self._run_dir}/", f"{self._data}/"))), reverse=True):
            _run(["umount", "-l", mount], check=False)
        self._remove_cgroups()
        self._network(add=False)
        if self._run_dir.name.startswith("lhbed"):
            shutil.rmtree(self._run_dir, ignore_errors=True)
        _state_file(self._slot).unlink(missing_ok=True)

    @property
    def _cgroup(self) -> str:
        """The parent of every host's cgroup, in each hierarchy of the machine."""
        return f"/longhaul-bed{self._slot}"

    def _cgroups(self) -> set[Path]:
        """That parent in each hierarchy."""
        mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
        return {Path(words[1] + self._cgroup) for words in mounts if words[2] in ("cgroup", "cgroup2")}

    def _make_cgroups(self) -> None:
        """Give the hosts the processor time of many tasks. By default all of them together weigh as much as one task of the machine.

        Beside lint and unit tests that made a start on a host many times slower than the controller that watches it.
        """
        for tree in self._cgroups():
            with contextlib.suppress(OSError):
                tree.mkdir(exist_ok=True)
                for name, usual in (("cpu.shares", 1024), ("cpu.weight", 100)):
                    if (tree / name).exists():
                        (tree / name).write_text(str(usual * CPU_WEIGHT))

    def _remove_cgroups(self) -> None:
        """Docker removes a container's own cgroup, not those that systemd made below it where a hierarchy was in use."""
        for tree in self._cgroups():
            for folder, _, _ in os.walk(tree, topdown=False):
                # A cgroup goes with its last process, which may still be a zombie.
                with contextlib.suppress(OSError):
                    _retry(Path(folder).rmdir, 5)

    # Docker

    def docker(
        self, *words: str | Path, check: bool = True, timeout_s: float = 120, stdin: BinaryIO | int | None = subprocess.DEVNULL
    ) -> subprocess.CompletedProcess[str]:
        """The bed's own daemon: ``docker("ps", "-a")``."""
        argv = ["docker", "--config", self._run_dir / "cli", "-H", f"unix://{self._socket}", *words]
        return _run(argv, check=check, timeout_s=timeout_s, stdin=stdin)

    def import_rootfs(self, tar: Path, changes: Sequence[str] = ()) -> str:
        """Import a root file system; the image is named after the tar's name, so a second call costs nothing."""
        image = f"testbed/{tar.stem}"
        if self.docker("image", "inspect", image, check=False).returncode:
            options = [word for change in changes for word in ("-c", change)]
            self.docker("import", *options, tar, image, timeout_s=600)
        return image

    # Hosts

    def hosts(
        self, count: int, *, ports: Sequence[int] = (8000,), prefix: str = "node", docker: bool = True, installed: bool = False
    ) -> list[Host]:
        """Make ``count`` bare hosts and wait until systemd is up and sshd answers (3 s for three on an idle machine).

        ``docker=False`` leaves out the volumes that a nested Docker engine needs (cheaper where many are wanted).
        ``installed=True`` brings Docker's packages, unconfigured: provisioning such a host only writes its settings.
        """
        image = self.import_rootfs(_base_rootfs(installed), ['CMD ["/sbin/testbed-init"]'])
        self._keys()
        made = [self._make(image, f"{prefix}{self._next()}", ports, docker) for _ in range(count)]
        listing = json.loads(self.docker("inspect", *made).stdout) if made else []
        hosts = []
        for entry in listing:
            published = {
                int(key.split("/")[0]): int(value[0]["HostPort"])
                for key, value in entry["NetworkSettings"]["Ports"].items()
                if value
            }
            if 22 not in published:
                raise BedError(f"host {entry['Name'].lstrip('/')} did not stay up: {json.dumps(entry['State'])}")
            hosts.append(Host(entry["Name"].lstrip("/"), entry["Id"], published.pop(22), published, self))
        with self._known_hosts.open("a") as known:
            for host in hosts:
                public = (self._run_dir / "keys" / host.name / "host_key.pub").read_text().split()
                known.write(f"[127.0.0.1]:{host.ssh_port} {public[0]} {public[1]}\n")
        for host in hosts:
            _wait(f"sshd of {host.name}", lambda at=host.ssh_port: _answers("127.0.0.1", at, b"SSH-"), 90, None)
        for host in hosts:
            _wait(f"systemd of {host.name}", lambda at=host: _booted(at), 90, None)
        return hosts

    def many_hosts(self, count: int = 20) -> list[Host]:
        """Hosts without room for Docker, for measuring what a run over many of them costs."""
        return self.hosts(count, ports=(), prefix="many", docker=False)

    def remove(self, hosts: Sequence[Host]) -> None:
        """Remove hosts before the bed itself goes."""
        if hosts:
            self.docker("rm", "-fv", *(host.container for host in hosts))

    def _free_port(self) -> int:
        """A port of this slot's own range, below the kernel's ephemeral ones: daemons of two beds would hand out the same."""
        while True:
            self._last_port = self._last_port + 1 if self._last_port else FIRST_PORT + self._slot * PORTS_PER_SLOT
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", self._last_port))
                except OSError:
                    continue
                return self._last_port

    def _next(self) -> int:
        self._names += 1
        return self._names

    def _make(self, image: str, name: str, ports: Sequence[int], docker: bool) -> str:
        keys = self._run_dir / "keys" / name
        keys.mkdir(parents=True)
        _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", keys / "host_key"])
        shutil.copy(self._run_dir / "keys" / "client.pub", keys / "authorized_keys")
        keys.chmod(0o755)
        words = ["run", "-d", "--name", name, "--hostname", name, "--stop-signal", "SIGRTMIN+3", "--cap-add=ALL"]
        words += ["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"]
        if not _has_capability(CAP_SYS_RESOURCE):
            words += ["--cap-drop=SYS_RESOURCE"]
        words += ["--tmpfs", "/run", "--tmpfs", "/run/lock", "--sysctl", "net.ipv4.ip_forward=1", "-v", f"{keys}:/etc/testbed:ro"]
        if docker:
            words += ["-v", "/var/lib/docker", "-v", "/var/lib/containerd"]
        for port in (22, *ports):
            words += ["-p", f"127.0.0.1:{self._free_port()}:{port}"]
        self.docker(*words, image)
        return name

    # SSH and Ansible

    @property
    def key(self) -> Path:
        """The private key that every host accepts for root."""
        return self._run_dir / "keys" / "client"

    @property
    def _known_hosts(self) -> Path:
        return self._run_dir / "keys" / "known_hosts"

    def _keys(self) -> None:
        self.key.parent.mkdir(mode=0o755, exist_ok=True)
        if not self.key.exists():
            _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "testbed", "-f", self.key])
            self._known_hosts.touch()

    @property
    def ssh_args(self) -> str:
        """Options for ssh: only our key, only hosts that we know, and no file of the user's."""
        return f"-F /dev/null -o UserKnownHostsFile={self._known_hosts} -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes"

    def inventory(self, groups: Mapping[str, Sequence[Host]], variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """An inventory as data: each host under its groups, with how to reach it; ``variables`` go to all."""
        every = {host.name: host for members in groups.values() for host in members}
        connection = {
            "ansible_host": "127.0.0.1",
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": self.ssh_args,
            # As in ansible.cfg, but a cut cable is noticed in seconds and loopback is not compressed.
            "ansible_ssh_args": "-o ControlMaster=auto -o ControlPersist=60s -o ServerAliveInterval=3 -o ServerAliveCountMax=3",
            # Kept connections die with the bed: the next one may get the same ports.
            "ansible_control_path_dir": str(self._run_dir / "cp"),
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        return {
            "all": {
                "vars": {**connection, **(variables or {})},
                "hosts": {name: {"ansible_port": host.ssh_port} for name, host in every.items()},
                "children": {group: {"hosts": {host.name: {} for host in members}} for group, members in groups.items()},
            }
        }

    def write_inventory(
        self, folder: Path, groups: Mapping[str, Sequence[Host]], variables: Mapping[str, Any] | None = None
    ) -> Path:
        """Write ``folder/hosts.json`` (YAML reads JSON) and return the folder, which is what ``-i`` takes."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts.json").write_text(json.dumps(self.inventory(groups, variables), indent=2) + "\n")
        return folder


def reap(slot: int) -> None:
    """Remove what a killed owner of a slot left: processes, mounts, bridge, rules, files. Nothing where the slot is in use."""
    dead = Bed()
    if dead._claim(slot):
        dead._lock.close()
        _restore_inotify_limit()


def command(*words: str, python: Sequence[str] = (sys.executable,)) -> list[str]:
    """The command line of this file as a program; its working folder is ``tests``."""
    return [*python, "-m", "testbed.bed", *words]


def _slot_lock(slot: int) -> Path:
    return LOCKS / f"slot-{slot}.lock"


def _state_file(slot: int) -> Path:
    """Where the owner of a slot keeps its things; there as long as there is something to clean up."""
    return LOCKS / f"slot-{slot}.json"


def _raise_inotify_limit() -> None:
    """A systemd takes a handful of inotify instances, root has 128 in all: twenty hosts need more, or die at once (exit 255)."""
    with _locked(LOCKS / "inotify.lock"):
        limit = int(INOTIFY.read_text())
        if limit < INOTIFY_INSTANCES:
            (LOCKS / "inotify.before").write_text(str(limit))
            INOTIFY.write_text(str(INOTIFY_INSTANCES))


def _restore_inotify_limit() -> None:
    """Back to what the machine had, once no bed is left."""
    before = LOCKS / "inotify.before"
    with _locked(LOCKS / "inotify.lock"):
        for slot in range(SLOTS):
            with _slot_lock(slot).open("w") as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return
        if before.exists():
            INOTIFY.write_text(before.read_text())
            before.unlink()


def _exit_on_term(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _belongs(pid: int, marks: Sequence[bytes]) -> bool:
    """Whether a process was started out of this bed: its command line or its cgroup names one of our paths or containers."""
    if pid == os.getpid():
        return False
    try:
        text = Path(f"/proc/{pid}/cgroup").read_bytes()
        program = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    daemons = (b"dockerd", b"containerd", b"docker-registry", b"docker-proxy")
    ours = any(daemon in program.split(b"\0")[0] for daemon in daemons) and any(mark in program for mark in marks)
    return ours or any(mark in text for mark in marks[1:])


def _has_capability(number: int) -> bool:
    found = re.search(r"^CapBnd:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(found and int(found.group(1), 16) >> number & 1)


def _answers(host: str, port: int, banner: bytes = b"") -> bool:
    try:
        with socket.create_connection((host, port), timeout=2) as link:
            return not banner or link.recv(len(banner)) == banner
    except OSError:
        return False


def _booted(host: Host) -> bool:
    state = host.run("systemctl is-system-running", check=False).stdout.strip()
    return state in {"running", "degraded"}


def _retry(step: Callable[[], object], times: int) -> None:
    """Call again after an OSError; the last one is raised."""
    for _ in range(times - 1):
        with contextlib.suppress(OSError):
            step()
            return
        time.sleep(0.1)
    step()


def _wait(what: str, ready: Any, timeout_s: float, log: Path | None) -> None:
    end = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > end:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log and log.exists() else ""
            raise BedError(f"{what} was not up after {timeout_s:.0f} s {tail}")
        time.sleep(0.2)


def main(words: Sequence[str]) -> int:
    """``up N [PORT…]``: hosts to play with until Ctrl-C. ``reap SLOT``: wait for the end of a bed's owner, then clean up."""
    if len(words) == 2 and words[0] == "reap":
        if sys.stdin.buffer.read() != b"done":
            time.sleep(0.5)  # the kernel lets go of the slot's lock when the owner is all gone
            reap(int(words[1]))
        return 0
    if len(words) < 2 or words[0] != "up":
        print("usage: bed.py up COUNT [PORT ...]", file=sys.stderr)
        return 2
    with Bed() as bed:
        hosts = bed.hosts(int(words[1]), ports=[int(word) for word in words[2:]] or (8000,))
        folder = bed.write_inventory(bed.key.parents[1] / "inventory", {"engines": hosts})
        print(f"inventory: {folder}\nregistry:  {bed.registry}")
        for host in hosts:
            print(f"{host.name}: ssh -i {bed.key} {bed.ssh_args} -p {host.ssh_port} root@127.0.0.1  ports {dict(host.ports)}")
        print("Ctrl-C removes all of it.", flush=True)
        try:
            signal.pause()
        except (KeyboardInterrupt, SystemExit):
            print("removing", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
