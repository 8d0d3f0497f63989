"""``longhaul bundle``: a wheelhouse for hosts without a package index, in pieces of a chosen size; or put one together."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

from ..bundle.manifest import COMPRESSIONS, Manifest, Target, file_of, join_bundle, write_bundle
from ..bundle.pieces import parse_size, split_wheels, store_wheels
from ..bundle.wheelhouse import common_locks, default_locks, fetch_wheels, needed, parse_installed, read_lock
from ..errors import UserError

# Wheels run by Python as they are: the way to install where Python has no ensurepip.
PIP = "pip==25.3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Either --engine and --out, or --join."""
    parser.add_argument("--engine", metavar="NAME==VERSION", help="an engine and its release, such as vllm==0.25.1")
    parser.add_argument("--device", choices=("cuda", "cpu", "rocm"), default="cuda", help="which shipped lock (default: cuda)")
    parser.add_argument("--lock", type=Path, metavar="FILE", help="a lock of your own in place of the shipped one")
    parser.add_argument("--python", metavar="X.Y", help="Python of the host (default: what the lock says)")
    parser.add_argument("--machine", default="x86_64", metavar="ARCH", help="x86_64 or aarch64 (default: x86_64)")
    parser.add_argument("--glibc", default="2.34", metavar="2.N", help="oldest C library among the hosts (default: 2.34)")
    parser.add_argument(
        "--exclude-installed", type=Path, metavar="LIST", help="pip list --format=json, or pip freeze, of the host"
    )
    parser.add_argument("--find-links", action="append", default=[], metavar="DIR", help="folders with wheels to look in first")
    parser.add_argument("--extra-index-url", action="append", default=[], metavar="URL", help="for packages with a local version")
    parser.add_argument("--engine-only", action="store_true", help="leave out supervisord, the test client and the controller")
    parser.add_argument("--split", metavar="SIZE", help="cut into pieces of at most this size: 60MB, 4GiB")
    parser.add_argument(
        "--compress",
        choices=COMPRESSIONS,
        default="none",
        help="xz: wheels unpacked, pieces under xz (with --split; default: none)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the bundle")
    parser.add_argument("--join", type=Path, metavar="DIR", help="check a bundle and put its wheels together")


def run(args: argparse.Namespace) -> int:
    """Build, or join."""
    if args.join:
        print(join_bundle(args.join))
        return 0
    if args.out is None or (args.engine is None and args.lock is None):
        raise UserError("no --out, or neither --engine nor --lock", "--engine NAME==VERSION --out DIR, or --join DIR", "add them")
    split_bytes = parse_size(args.split) if args.split else None
    if args.compress != "none" and split_bytes is None:
        required = "both: only pieces are compressed, not the folder wheels/"
        fix = "add --split SIZE (4GB, say, for one piece), or leave --compress out"
        raise UserError(f"--compress {args.compress} without --split", required, fix)
    root = Path(__file__).resolve().parents[3]
    engine_lock = args.lock or default_locks(root, args.engine, args.device)[0]
    lock = read_lock(engine_lock)
    python = _pair("--python", args.python, r"(3)\.(\d+)") if args.python else lock.python
    if python is None:
        raise UserError(f"no --python, and {engine_lock.name} names none", "the host's Python", "add --python 3.12")
    if lock.python not in (None, python):
        found = f"--python {python[0]}.{python[1]} with {engine_lock.name}"
        raise UserError(found, "the Python that the lock was made for", "leave --python out")
    target = Target(python, args.machine, _pair("--glibc", args.glibc, r"(2)\.(\d+)"))
    installed = parse_installed(_text(args.exclude_installed)) if args.exclude_installed else {}
    # Only the engine's environment may borrow from the system; the others are complete in themselves.
    carry, left_out = needed([lock], installed)
    others = () if args.engine_only else needed([read_lock(p) for p in common_locks(root)], {})[0]
    wheels = args.out / "wheels"
    if wheels.exists():
        shutil.rmtree(wheels)
    wanted = list(dict.fromkeys((*carry, *others, PIP)))
    fetch_wheels(wanted, target, wheels, sources=args.find_links, say=_say, extra_index_urls=args.extra_index_url)
    if args.compress == "xz":
        store_wheels(wheels, say=_say)
    # After the repacking: what the manifest lists is what lies in wheels/ on the host.
    files = tuple(file_of(p) for p in sorted(wheels.glob("*.whl")))
    pieces = split_wheels(wheels, args.out / "pieces", split_bytes, compression=args.compress, say=_say) if split_bytes else ()
    if pieces:
        shutil.rmtree(wheels)
    manifest = Manifest(args.engine or engine_lock.stem, target, files, pieces, left_out, args.compress)
    write_bundle(args.out, manifest)
    shape = f"{len(pieces)} pieces" if pieces else "not split"
    if args.compress != "none":
        shape += f" of {sum(f.size_bytes for f in pieces) / 1e6:.0f} MB together ({args.compress})"
    print(
        f"{args.out}: {len(files)} wheels, {manifest.size_bytes / 1e6:.0f} MB, {shape}; left out {len(left_out)} that the host has"
    )
    return 0


def _say(text: str) -> None:
    print(f"bundle: {text}", file=sys.stderr)


def _pair(flag: str, text: str, pattern: str) -> tuple[int, int]:
    match = re.fullmatch(pattern, text.strip())
    if not match:
        example = "3.12" if flag == "--python" else "2.34"
        raise UserError(f"{flag} {text!r}", f"two numbers such as {example}", f"correct {flag}")
    return int(match[1]), int(match[2])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} ({error.strerror})", "a readable list of packages", "correct --exclude-installed") from error
