"""How long the plan takes: the package's import, one plan, the sweep over the GPU table, the nearest plans.

Run with the project's Python: ``PYTHONPATH=module_utils python benchmarks/plan_speed.py``. Wall times, best and median of
several runs; whole processes include the interpreter's own start, printed apart. The limits are the project's own aims.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from longhaul.capacity.plan import plan_capacity
from longhaul.capacity.search import nearest_plans
from longhaul.cli import main
from longhaul.engines.sizing import PlanSettings
from longhaul.models.reader import load_architecture
from longhaul.physics.hardware import get_gpu
from longhaul.version import Version

ROOT = Path(__file__).resolve().parents[1]
SCOUT = ROOT / "tests" / "data" / "configs" / "llama-4-scout.json"
SWEEP = ["plan", "--model", str(SCOUT), "--gpus", "8", "--engine", "vllm==0.33.0", "--sweep"]


def timed(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """(best, median) seconds."""
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return min(spent), statistics.median(spent)


def python(code: str) -> None:
    """Run ``code`` in a fresh interpreter."""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "module_utils")})


def sweep() -> None:
    """The sweep of Scout over the GPU table, output thrown away."""
    with contextlib.redirect_stdout(io.StringIO()):
        main(SWEEP)


def report() -> None:
    """Print one line for each measurement."""
    model, gpu = load_architecture(SCOUT), get_gpu("h200")
    settings = PlanSettings("vllm", Version.parse("0.12.0"), context_tokens=8_388_608, tensor_parallel=8, available_kv_gib=89.71)
    rows: list[tuple[str, Callable[[], object], int, float | None]] = [
        ("interpreter alone", lambda: python("pass"), 7, None),
        ("import longhaul (process)", lambda: python("import longhaul"), 7, None),
        ("import longhaul.commands.plan (process)", lambda: python("import longhaul.commands.plan"), 7, None),
        ("load Scout's config", lambda: load_architecture(SCOUT), 20, None),
        ("one plan", lambda: plan_capacity(model, gpu, settings), 20, None),
        ("nearest plans that fit", lambda: nearest_plans(model, gpu, settings, host_gpus=8), 5, None),
        ("plan --sweep, Scout, all GPUs", sweep, 7, 0.5),
    ]
    bests = {}
    for label, work, repeats, limit in rows:
        best, median = timed(work, repeats)
        bests[label] = best
        note = "" if limit is None else f"  (aim: under {limit * 1e3:.0f} ms: {'yes' if median < limit else 'NO'})"
        print(f"{label:<42} best {best * 1e3:8.2f} ms  median {median * 1e3:8.2f} ms{note}")
    package = bests["import longhaul (process)"] - bests["interpreter alone"]
    print(f"the package's own import: {package * 1e3:.1f} ms  (aim: under 100 ms: {'yes' if package < 0.1 else 'NO'})")


if __name__ == "__main__":
    report()
