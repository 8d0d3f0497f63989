"""Debian packages that a test needs on this machine, installed once with apt-get. The files stay in the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from support import cache


class CannotInstall(RuntimeError):
    """apt-get failed; the text carries the end of its output."""


def missing(programs: Mapping[str, str]) -> dict[str, str]:
    """The programs (name -> package) that are not on the PATH."""
    return {name: package for name, package in programs.items() if shutil.which(name) is None}


def why_not(programs: Mapping[str, str]) -> str | None:
    """Why the missing ones cannot be installed here, in one line; None where nothing is missing or root has apt-get."""
    lacking = sorted(missing(programs))
    if not lacking or (os.geteuid() == 0 and shutil.which("apt-get")):
        return None
    return f"{', '.join(lacking)} missing, and only root on Debian or Ubuntu can install {'it' if len(lacking) == 1 else 'them'}"


def install(programs: Mapping[str, str]) -> None:
    """Install the packages of the missing programs. Starts no service."""
    with cache.locked("apt"):
        packages = set(missing(programs).values())
        if not packages:
            return
        if "mmdebstrap" in packages:
            packages.add("debian-archive-keyring")  # an Ubuntu machine has no keys for a Debian image
        archives = cache.root() / "debs"
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        policy = Path("/usr/sbin/policy-rc.d")
        ours = not policy.exists()
        if ours:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300", "-o", f"Dir::Cache::Archives={archives}"]
        # The user _apt may not enter root's home.
        apt += ["-o", "APT::Sandbox::User=root"]
        try:
            _run([*apt, "update"], timeout_s=300)
            _run([*apt, "install", "--no-install-recommends", *sorted(packages)], timeout_s=900)
        finally:
            if ours:
                policy.unlink(missing_ok=True)


def _run(words: list[str], timeout_s: float) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise CannotInstall(f"{' '.join(words[:2])} {words[-1]} exited {done.returncode}: {tail}")
