"""How true are the times that a client reads? Our client and the field's load generators against a server that knows.

    python benchmarks/client_accuracy.py                                        # our client, aiohttp and httpx
    python benchmarks/client_accuracy.py --peers vllm,guidellm,aiperf,inference-perf --scenarios 1,50,200,half,big
    python benchmarks/client_accuracy.py --scenarios big --clients ours          # 50 bodies of 15 MB: peak memory

The server (tests/standin, a process of its own) writes down when it took each request and sent each first token. The error is what the
client reads minus that, at p50 and p99. Every client runs in processes of its own, so that CPU seconds and peak memory are its own.

CPU: ``ours``, ``aiohttp`` and ``httpx`` are timed without their imports. A peer is a whole tool. Its CPU in all includes its start; per
request, its run of scenario 1 (ten requests) is subtracted as that start, and a dash means that the rest is too small to tell. Memory is
the largest sum over all its processes. "In flight" is the mean number of requests at the server, by Little's law: less than asked for
means that the tool could not keep up. The ITL error is left out where the server itself, busy with large bodies, did not keep its gap.
Run it on two cores at least, with nothing else on them: the load average stands below the table.

``--install`` makes an environment for each peer in ~/.cache/longhaul-test/peers (about 3.5 GB in all) from PyPI. They need torch or only
its metadata: where pip would fetch the CUDA build, set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu and PIP_CONSTRAINT to a
file with ``torch==2.13.0+cpu`` first. inference-perf needs Python 3.12 (``--python312 PATH``). ``vllm bench serve`` runs from the engine
environment that scripts/test makes (~/.cache/longhaul-test/engines), with pandas put beside it. The table names a peer that is not
installed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import mmap
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "module_utils"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from client_peers import PEERS, Task, install_peer, run_tree  # noqa: E402 - beside this file
from prompt_build import CACHE  # noqa: E402


@dataclass(frozen=True)
class Scenario:
    """``tokens``: length of each prompt in ids; ``requests`` in all, ``in_flight`` at once; ``rows``: prompts given to peers."""

    name: str
    tokens: int
    in_flight: int
    requests: int
    output: int = 100
    ttft_s: float = 0.2
    gap_s: float = 0.01
    rows: int = 50


SCENARIOS = {
    "1": Scenario("1 in flight", 1000, 1, 10, rows=10),
    "50": Scenario("50 in flight", 1000, 50, 400),
    "200": Scenario("200 in flight", 1000, 200, 1600),
    "half": Scenario("50 bodies of 0.5 MB", 75_000, 50, 100, rows=10),
    "big": Scenario("50 bodies of 15 MB", 2_097_152, 50, 50, output=20, rows=1),
}


def mapped_prompt(tokens: int, folder: Path) -> memoryview:
    """A JSON array of that many ids in a memory-mapped file, as a corpus on disk is."""
    path = folder / f"{tokens}.json"
    if not path.exists():
        row = ",".join(str(100_000 + (i * 7919) % 80_000) for i in range(4096))
        with path.open("w") as out:
            out.write("[")
            left = tokens
            while left > 0:
                take = min(left, 4096)
                out.write(row if take == 4096 else ",".join(row.split(",")[:take]))
                left -= take
                if left:
                    out.write(",")
            out.write("]")
    with path.open("rb") as source:
        return memoryview(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ))


Body = tuple[bytes | memoryview, ...]


def bodies(scenario: Scenario, folder: Path) -> list[Body]:
    """(head, ids, tail) of every request, before any clock starts; distinct in their first id."""
    ids = mapped_prompt(scenario.tokens, folder)[7:]
    rest = {"model": "standin-model", "max_tokens": scenario.output, "stream": True, "stream_options": {"include_usage": True}}
    tail = b"," + json.dumps(rest).encode()[1:]
    return [(b'{"prompt":[%d' % (200_000 + number), ids, tail) for number in range(scenario.requests)]


async def ours(url: str, scenario: Scenario, prepared: list[Body]) -> list[tuple[float, float, float]]:
    """(TTFT, median gap, E2E) of each request, seconds."""
    from longhaul.client.endpoint import Endpoint
    from longhaul.client.exchange import Timeouts
    from longhaul.client.load import no_collections
    from longhaul.client.stream import StreamClient
    from longhaul.engines.registry import get_engine

    adapter = get_engine("vllm")
    out: list[tuple[float, float, float]] = []
    async with StreamClient(Endpoint.parse(url)) as client:
        await client.open_connections(scenario.in_flight)
        waiting = iter(prepared)

        async def worker() -> None:
            for parts in waiting:
                exchange = await client.stream("/v1/completions", parts, adapter, Timeouts())
                if exchange.error or exchange.ttft_s is None or exchange.e2e_s is None:
                    raise RuntimeError(exchange.error)
                out.append((exchange.ttft_s, statistics.median(exchange.itl_s), exchange.e2e_s))

        with no_collections():
            await asyncio.gather(*(worker() for _ in range(scenario.in_flight)))
    return out


def _events(times: list[float], sent: float) -> tuple[float, float, float]:
    gaps = [b - a for a, b in itertools.pairwise(times)]
    return times[0] - sent, statistics.median(gaps), times[-1] - sent


async def with_aiohttp(url: str, scenario: Scenario, prepared: list[Body]) -> list[tuple[float, float, float]]:
    """The same with aiohttp, body joined, as its users do."""
    import aiohttp  # type: ignore[import-not-found]  # only where it is installed

    out: list[tuple[float, float, float]] = []
    waiting = iter(prepared)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def worker() -> None:
            for parts in waiting:
                body = b"".join(parts)
                times: list[float] = []
                sent = time.perf_counter()
                async with session.post(
                    f"{url}/v1/completions", data=body, headers={"Content-Type": "application/json"}
                ) as answer:
                    async for line in answer.content:
                        if line.startswith(b"data: {"):
                            now = time.perf_counter()
                            if json.loads(line[6:])["choices"]:
                                times.append(now)
                out.append(_events(times, sent))

        await asyncio.gather(*(worker() for _ in range(scenario.in_flight)))
    return out


async def with_httpx(url: str, scenario: Scenario, prepared: list[Body]) -> list[tuple[float, float, float]]:
    """The same with httpx."""
    import httpx

    out: list[tuple[float, float, float]] = []
    waiting = iter(prepared)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=scenario.in_flight)
    async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as client:  # noqa: S113 - the server is ours

        async def worker() -> None:
            for parts in waiting:
                body = b"".join(parts)
                times: list[float] = []
                sent = time.perf_counter()
                headers = {"Content-Type": "application/json"}
                async with client.stream("POST", f"{url}/v1/completions", content=body, headers=headers) as answer:
                    async for line in answer.aiter_lines():
                        if line.startswith("data: {"):
                            now = time.perf_counter()
                            if json.loads(line[6:])["choices"]:
                                times.append(now)
                out.append(_events(times, sent))

        await asyncio.gather(*(worker() for _ in range(scenario.in_flight)))
    return out


CLIENTS = {"ours": ours, "aiohttp": with_aiohttp, "httpx": with_httpx}


def child(name: str, url: str, scenario: Scenario, folder: Path) -> None:
    """In the client's process: run, then print one JSON object."""
    prepared = bodies(scenario, folder)
    begun, cpu = time.perf_counter(), time.process_time()
    rows = asyncio.run(CLIENTS[name](url, scenario, prepared))
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(
        json.dumps(
            {
                "rows": rows,
                "wall_s": wall,
                "cpu_s": cpu,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "anonymous_mb": int(status["RssAnon"].split()[0]) / 1024,
            }
        )
    )


def quantile(values: list[float], q: float) -> float:
    """The q-quantile of unsorted values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]


@dataclass(frozen=True)
class Row:
    """One client in one scenario. ``failed``: why there are no figures. ``cpu_s`` in all, ``start_cpu_s`` of it for starting."""

    scenario: str
    client: str
    failed: str | None = None
    requests: int = 0
    server_p50_ms: float = 0.0
    server_p99_ms: float = 0.0
    ttft_p50_ms: float = 0.0
    ttft_p99_ms: float = 0.0
    server_itl_ms: float = 0.0
    itl_p50_ms: float = 0.0
    gap_ms: float = 0.0
    requests_per_s: float = 0.0
    in_flight: float = 0.0
    cpu_s: float = 0.0
    start_cpu_s: float | None = None
    peak_mb: float = 0.0
    anonymous_mb: float | None = None
    load_before: float = 0.0

    def markdown(self) -> str:
        """A line of the table."""
        start = f"| {self.scenario} | {self.client} | "
        if self.failed:
            return f"{start}{self.failed} | | | | | | | |"
        own_s = None if self.start_cpu_s is None else self.cpu_s - self.start_cpu_s
        # Two runs of one tool differ by that much in their start alone.
        sure = own_s is not None and own_s > 0.25 * (self.start_cpu_s or 0.0)
        each = f"{1000 * own_s / self.requests:.1f}" if own_s is not None and sure else "-"
        kept = abs(self.server_itl_ms - self.gap_ms) < 0.1 * self.gap_ms
        itl = f"{self.itl_p50_ms - self.server_itl_ms:+.2f}" if kept else "-"
        memory = f"{self.peak_mb:.0f}" + ("" if self.anonymous_mb is None else f" ({self.anonymous_mb:.0f} anonymous)")
        return (
            f"{start}{self.server_p50_ms:.1f} / {self.server_p99_ms:.1f} | "
            f"{self.ttft_p50_ms - self.server_p50_ms:+.1f} / {self.ttft_p99_ms - self.server_p99_ms:+.1f} | "
            f"{itl} | {self.requests_per_s:.0f} | {self.in_flight:.0f} | {self.cpu_s:.1f} | {each} | {memory} |"
        )


HEADER = (
    "| scenario | client | server's TTFT p50 / p99, ms | error of TTFT p50 / p99, ms | error of ITL p50, ms | req/s "
    "| in flight | CPU, s in all | CPU, ms/request | peak MB |\n|---|---|---|---|---|---|---|---|---|---|"
)


def standin_args(scenario: Scenario, truth: Path) -> list[str]:
    """The known schedule."""
    timing = ["--ttft", str(scenario.ttft_s), "--gap", str(scenario.gap_s)]
    return ["--no-enable-prefix-caching", *timing, "--truth-log", str(truth)]


def of_server(truth: Path) -> dict[str, Any]:
    """The server's own view: first token minus the request's first byte; and the mean gap and duration of its streams."""
    known = [json.loads(line) for line in truth.read_text().splitlines()]
    ttft = [row["ttft_s"] for row in known]
    gaps = [(row["e2e_s"] - row["ttft_s"]) / max(1, row["tokens"] - 1) for row in known]
    return {
        "server_p50_ms": 1000 * quantile(ttft, 0.5),
        "server_p99_ms": 1000 * quantile(ttft, 0.99),
        "server_itl_ms": 1000 * quantile(gaps, 0.5),
        "e2e_s": sum(row["e2e_s"] for row in known) / len(known),
    }


def measure(name: str, scenario: Scenario, folder: Path) -> Row:
    """One of our own clients against a fresh server."""
    from standin.fixture import StandIn

    truth = folder / f"truth-{name}-{scenario.name.replace(' ', '-')}.jsonl"
    load = os.getloadavg()[0]
    with StandIn(*standin_args(scenario, truth)) as server:
        command = [sys.executable, __file__, "--child", name, "--url", server.url, "--folder", str(folder)]
        command += ["--scenario-json", json.dumps(asdict(scenario))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["died"]
        missing = "ModuleNotFoundError" in lines[-1]
        return Row(scenario.name, name, "not installed" if missing else lines[-1][:100])
    found = json.loads(done.stdout)
    known = of_server(truth)
    e2e_s = known.pop("e2e_s")
    ttft, gaps = [row[0] for row in found["rows"]], [row[1] for row in found["rows"]]
    return Row(
        scenario=scenario.name,
        client=name,
        requests=len(ttft),
        **known,
        ttft_p50_ms=1000 * quantile(ttft, 0.5),
        ttft_p99_ms=1000 * quantile(ttft, 0.99),
        itl_p50_ms=1000 * quantile(gaps, 0.5),
        gap_ms=1000 * scenario.gap_s,
        requests_per_s=len(ttft) / found["wall_s"],
        in_flight=len(ttft) / found["wall_s"] * e2e_s,
        cpu_s=found["cpu_s"],
        start_cpu_s=0.0,
        peak_mb=found["peak_mb"],
        anonymous_mb=found["anonymous_mb"],
        load_before=load,
    )


def peer_prompts(scenario: Scenario, folder: Path, *, wraps: bool) -> Path:
    """The prompts as text: as many bytes as our ids, seven a word, distinct in their first word.

    A tool that does not start again at the first prompt gets one for each request.
    """
    rows = scenario.rows if wraps else scenario.requests
    path = folder / f"prompts-{scenario.tokens}-{rows}-{'both' if wraps else 'one'}.jsonl"
    if not path.exists():
        words = " ".join(f"w{(i * 7919) % 90_000:05d}" for i in range(scenario.tokens - 1))
        with path.open("w", encoding="utf-8") as out:
            for number in range(rows):
                text = f"x{number:05d} {words}"
                # One tool calls it prompt, another text; twice only where the file stays small.
                out.write(json.dumps({"prompt": text, "text": text} if wraps else {"prompt": text}) + "\n")
    return path


def measure_peer(name: str, scenario: Scenario, folder: Path, start_cpu_s: float | None, timeout_s: float) -> tuple[Row, float]:
    """A peer against a fresh server; also its CPU seconds in all."""
    from standin.fixture import StandIn

    peer = PEERS[name]
    python = peer.python()
    if python is None:
        return Row(scenario.name, name, f"not installed ({peer.how})"), 0.0
    own = folder / f"{name}-{scenario.name.replace(' ', '-')}"
    own.mkdir()
    truth = own / "truth.jsonl"
    load = os.getloadavg()[0]
    with StandIn(*standin_args(scenario, truth)) as server:
        task = Task(
            server.url, peer_prompts(scenario, folder, wraps=peer.wraps), scenario.rows, scenario.tokens, scenario.requests, scenario.in_flight,
            scenario.output, own,
        )  # fmt: skip
        argv, env = peer.command(python, task)
        used = run_tree(argv, env, own, timeout_s)
    try:
        if used.failed is not None:
            raise RuntimeError(used.failed)
        told = peer.read(task)
        known = of_server(truth)
    except (RuntimeError, OSError, KeyError, ValueError, TypeError, IndexError) as exc:
        row = Row(scenario.name, name, f"no figures: {str(exc) or type(exc).__name__}")
    else:
        e2e_s = known.pop("e2e_s")
        row = Row(
            scenario=scenario.name,
            client=name,
            requests=told.completed,
            **known,
            ttft_p50_ms=told.ttft_p50_ms,
            ttft_p99_ms=told.ttft_p99_ms,
            itl_p50_ms=told.itl_p50_ms,
            gap_ms=1000 * scenario.gap_s,
            requests_per_s=told.completed / told.wall_s,
            in_flight=told.completed / told.wall_s * e2e_s,
            cpu_s=used.cpu_s,
            start_cpu_s=start_cpu_s,
            peak_mb=used.peak_mb,
            load_before=load,
        )
        if told.completed < scenario.requests:
            row = Row(scenario.name, name, f"only {told.completed} of {scenario.requests} requests completed")
    shutil.rmtree(own, ignore_errors=True)
    return row, used.cpu_s


def main() -> int:
    """Print a Markdown table as it grows; keep the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default="1,50,200,half", help="of " + ", ".join(SCENARIOS))
    parser.add_argument("--clients", default=",".join(CLIENTS), help="of " + ", ".join(CLIENTS))
    parser.add_argument("--peers", default="", help="of " + ", ".join(PEERS))
    parser.add_argument("--install", action="store_true", help="install the peers named first, into ~/.cache/longhaul-test/peers")
    parser.add_argument("--python312", default=shutil.which("python3.12"), help="for peers that need Python 3.12 or later")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds for one run of a peer")
    parser.add_argument("--out", type=Path, default=CACHE / "bench" / "client_accuracy.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scenario-json", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.url, Scenario(**json.loads(args.scenario_json)), args.folder)
        return 0
    chosen = _chosen(parser, "scenario", args.scenarios, list(SCENARIOS))
    clients = _chosen(parser, "client", args.clients, list(CLIENTS))
    peers = _chosen(parser, "peer", args.peers, list(PEERS))
    for name in peers if args.install else []:
        try:
            install_peer(name, args.python312)
        except (RuntimeError, subprocess.CalledProcessError) as exc:
            print(f"{name} is not installed: {str(exc)[:200]}", file=sys.stderr)
    about: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "load_before": os.getloadavg(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    start_cpu: dict[str, float] = {}
    print(HEADER)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key in chosen:
            scenario = SCENARIOS[key]
            mapped_prompt(scenario.tokens, folder)
            for client in [*clients, *peers]:
                if client in CLIENTS:
                    row = measure(client, scenario, folder)
                else:
                    row, cpu_s = measure_peer(client, scenario, folder, start_cpu.get(client), args.timeout)
                    if key == "1" and row.failed is None:
                        start_cpu[client] = cpu_s
                rows.append(row)
                print(row.markdown(), flush=True)
                about["load_after"] = os.getloadavg()
                told = {"about": about, "rows": [asdict(r) for r in rows]}  # after each row: a run that is stopped keeps its own
                args.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    load = ", ".join(f"{row.load_before:.1f}" for row in rows if row.failed is None)
    print(f"\n{about['machine']}, Python {about['python']}; load average before each run: {load}")
    return 0


def _chosen(parser: argparse.ArgumentParser, what: str, text: str, known: Sequence[str]) -> list[str]:
    names = [n for n in text.split(",") if n]
    for name in names:
        if name not in known:
            parser.error(f"unknown {what} {name}: one of {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
