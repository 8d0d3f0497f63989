"""How true are the times that a client reads? Our client, aiohttp and httpx against a server with a known schedule.

    python benchmarks/client_accuracy.py                       # ours; others too where they are installed
    python benchmarks/client_accuracy.py --scenarios 1,200 --clients ours
    python benchmarks/client_accuracy.py --scenarios big        # 50 bodies of 15 MB: peak memory

The server (tests/standin, its own process) writes down when it took each request and sent each first token; the error
is what the client reads minus that. Every client runs in a process of its own, so that CPU seconds and peak memory
(resident, without pages of the mapped corpus for our client's file-backed bodies) are its own. Two cores at least.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import mmap
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "module_utils"), str(ROOT / "tests")]


@dataclass(frozen=True)
class Scenario:
    """``tokens``: length of each prompt in ids; ``requests`` in all, ``in_flight`` at once."""

    name: str
    tokens: int
    in_flight: int
    requests: int
    output: int = 100
    ttft_s: float = 0.2
    gap_s: float = 0.01


SCENARIOS = {
    "1": Scenario("1 in flight", 1000, 1, 10),
    "50": Scenario("50 in flight", 1000, 50, 400),
    "200": Scenario("200 in flight", 1000, 200, 1600),
    "half": Scenario("50 bodies of 0.5 MB", 75_000, 50, 100),
    "big": Scenario("50 bodies of 15 MB", 2_097_152, 50, 50, output=20),
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
    from longhaul.client import Client, Endpoint, Timeouts
    from longhaul.engines import get_engine
    from longhaul.load import no_collections

    adapter = get_engine("vllm")
    out: list[tuple[float, float, float]] = []
    async with Client(Endpoint.parse(url)) as client:
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
    import aiohttp

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


def measure(name: str, scenario: Scenario, folder: Path) -> dict[str, float]:
    """One client against a fresh server."""
    from standin.fixture import StandIn

    truth = folder / f"truth-{name}-{scenario.name.replace(' ', '-')}.jsonl"
    args = ["--no-enable-prefix-caching", "--ttft", str(scenario.ttft_s), "--gap", str(scenario.gap_s), "--truth-log", str(truth)]
    with StandIn(*args) as server:
        command = [sys.executable, __file__, "--child", name, "--url", server.url, "--folder", str(folder)]
        command += ["--scenario-json", json.dumps(asdict(scenario))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    found = json.loads(done.stdout)
    known = [json.loads(line) for line in truth.read_text().splitlines()]
    # The server's own view: first token minus the request's first byte.
    server_ttft = [row["ttft_s"] for row in known]
    ttft, gaps = [row[0] for row in found["rows"]], [row[1] for row in found["rows"]]
    return {
        "server_p50_ms": 1000 * quantile(server_ttft, 0.5),
        "server_p99_ms": 1000 * quantile(server_ttft, 0.99),
        "ttft_p50_ms": 1000 * quantile(ttft, 0.5),
        "ttft_p99_ms": 1000 * quantile(ttft, 0.99),
        "itl_p50_ms": 1000 * quantile(gaps, 0.5),
        "requests_per_s": len(ttft) / found["wall_s"],
        "cpu_ms_per_request": 1000 * found["cpu_s"] / len(ttft),
        "peak_mb": found["peak_mb"],
        "anonymous_mb": found["anonymous_mb"],
    }


def main() -> int:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default="1,50,200,half")
    parser.add_argument("--clients", default=",".join(CLIENTS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scenario-json", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.url, Scenario(**json.loads(args.scenario_json)), args.folder)
        return 0
    print(
        "| scenario | client | server TTFT p50 / p99 ms | read TTFT p50 / p99 ms | ITL p50 ms | req/s | CPU ms/req | peak MB (anon) |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key in args.scenarios.split(","):
            scenario = SCENARIOS[key]
            mapped_prompt(scenario.tokens, folder)
            for client in args.clients.split(","):
                try:
                    row = measure(client, scenario, folder)
                except RuntimeError as exc:
                    why = "not installed" if "ModuleNotFoundError" in str(exc) else str(exc).strip().splitlines()[-1][:80]
                    print(f"| {scenario.name} | {client} | {why} | | | | | |", flush=True)
                    continue
                print(
                    f"| {scenario.name} | {client} | {row['server_p50_ms']:.1f} / {row['server_p99_ms']:.1f} | "
                    f"{row['ttft_p50_ms']:.1f} / {row['ttft_p99_ms']:.1f} | {row['itl_p50_ms']:.2f} | "
                    f"{row['requests_per_s']:.0f} | {row['cpu_ms_per_request']:.2f} | {row['peak_mb']:.0f} ({row['anonymous_mb']:.0f}) |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
