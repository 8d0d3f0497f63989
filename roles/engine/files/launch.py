#!/usr/bin/env python3
"""Become the engine that spec/current.json describes. Standard library only; runs under supervisord or in a container.

Secrets are read from their files here, at the last moment, so that none stands in argv, in the spec or in a unit file.
"""

import json
import os
import resource
import sys

# What the supervisor itself needs is no business of the engine's.
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER", "LOGNAME", "LD_LIBRARY_PATH", "CUDA_HOME")


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        spec = json.load(file)
    environment = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith("NVIDIA_")}
    environment.update(spec["env"])
    for name, secret_file in spec["secret_env"].items():
        with open(secret_file, encoding="utf-8") as file:
            environment[name] = file.read().strip()
    # Compilers and helpers of the engine's own environment come first.
    environment["PATH"] = os.path.dirname(spec["argv"][0]) + os.pathsep + environment.get("PATH", os.defpath)
    # Hundreds of streams and sharded files need more than the usual 1,024 descriptors.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    print(f"longhaul: starting spec {spec['spec_id']}: {spec['engine']} {spec['version']}", flush=True)
    os.execve(spec["argv"][0], spec["argv"], environment)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except (OSError, ValueError, KeyError) as error:
        print(f"longhaul: cannot start: {error}", flush=True)
        sys.exit(78)
