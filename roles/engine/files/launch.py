#!/usr/bin/env python3
"""Become the engine that spec/current.json describes. Standard library only; runs under supervisord or in a container.

Secrets are read from their files here, at the last moment, so that none stands in argv, in the spec or in a unit file.
"""

import contextlib
import json
import os
import resource
import shutil
import sys
import urllib.error
import urllib.request

# What the supervisor itself needs is no business of the engine's.
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER", "LOGNAME", "LD_LIBRARY_PATH", "CUDA_HOME")


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        spec = json.load(file)
    # An image's own environment (paths of CUDA and of its Python) belongs to the engine.
    everything = spec["runtime"] == "docker"
    environment = {k: v for k, v in os.environ.items() if everything or k in KEPT or k.startswith("NVIDIA_")}
    environment.update(spec["env"])
    for name, secret_file in spec["secret_env"].items():
        with open(secret_file, encoding="utf-8") as file:
            environment[name] = file.read().strip()
    program = spec["argv"][0]
    if os.path.dirname(program):
        # Compilers and helpers of the engine's own environment come first.
        environment["PATH"] = os.path.dirname(program) + os.pathsep + environment.get("PATH", os.defpath)
    else:
        program = shutil.which(program, path=environment.get("PATH")) or program
    # Hundreds of streams and sharded files need more than the usual 1,024 descriptors.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    # On a CPU-only host the engine takes every core: SSH, supervisord and the test client must still get their turn.
    if spec["settings"].get("device") == "cpu":
        os.nice(5)
    print(f"longhaul: starting spec {spec['spec_id']}: {spec['engine']} {spec['version']}", flush=True)
    if not everything:
        # What runs is what was current at this moment, whatever becomes current later.
        with contextlib.suppress(OSError), open(os.path.join(os.path.dirname(path), "running"), "w", encoding="utf-8") as file:
            file.write(spec["spec_id"])
    os.execve(program, spec["argv"], environment)


def health(url: str, timeout_s: float) -> int:
    """Exit status for a container's health check; an answer below 500 is healthy."""
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout_s).close()
    except urllib.error.HTTPError as error:
        return int(error.code >= 500)
    except OSError:
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--health":
        sys.exit(health(sys.argv[2], float(sys.argv[3])))
    try:
        main(sys.argv[1])
    except (OSError, ValueError, KeyError) as error:
        print(f"longhaul: cannot start: {error}", flush=True)
        sys.exit(78)
