"""Record what nvidia-smi says during a burn-in: a sample per GPU and second, and its full report before and after."""

from __future__ import annotations

import csv
import io
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..files import read_json, to_json, write_atomic
from ..host.read import parse_smi_xml
from ..host.state import SmiLog
from ..results import GpuLoad

SAMPLE_QUERY = "index,clocks.sm,clocks.max.sm,power.draw,temperature.gpu,utilization.gpu"
# The newer driver's name first; a driver may know only one of them.
REASON_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
# Bits of nvmlClocksEventReasons (nvml.h). Those of _BAD mean that the card is slower than it should be.
_REASONS = {
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
}
_BAD = 0x8 | 0x20 | 0x40 | 0x80
LOADED_UTILIZATION = 50


def parse_samples(text: str) -> tuple[GpuLoad, ...]:
    """CSV of ``nvidia-smi --query-gpu=SAMPLE_QUERY[,a reason field] --format=csv,noheader,nounits`` -> one result per GPU.

    Incomplete lines are left out: the sampler may be ended in the middle of one.
    """
    columns = SAMPLE_QUERY.count(",") + 1
    rows: dict[int, list[tuple[list[float | None], int | None]]] = {}
    for words in csv.reader(io.StringIO(text)):
        numbers = [_float(w) for w in words[:columns]]
        if len(numbers) == columns and numbers[0] is not None:
            reasons = _mask(words[columns]) if len(words) > columns else None
            rows.setdefault(int(numbers[0]), []).append((numbers[1:], reasons))
    return tuple(_load(index, rows[index]) for index in sorted(rows))


def _load(index: int, rows: Sequence[tuple[Sequence[float | None], int | None]]) -> GpuLoad:
    loaded = [(r, mask) for r, mask in rows if (r[4] or 0) >= LOADED_UTILIZATION]
    clocks = sorted(r[0] for r, _ in loaded if r[0] is not None)
    masks = [mask for _, mask in loaded if mask is not None]
    return GpuLoad(
        index=index,
        samples=len(rows),
        loaded_samples=len(loaded),
        sm_clock_mhz=clocks[len(clocks) // 2] if clocks else None,
        max_sm_clock_mhz=max((r[1] for r, _ in rows if r[1] is not None), default=None),
        power_w_max=max((r[2] for r, _ in rows if r[2] is not None), default=None),
        temperature_c_max=max((r[3] for r, _ in rows if r[3] is not None), default=None),
        throttled_samples=sum(bool(m & _BAD) for m in masks) if masks else None,
        throttle_reasons=tuple(name for bit, name in _REASONS.items() if any(m & bit for m in masks)),
    )


def _mask(word: str) -> int | None:
    try:
        return int(word, 16)
    except ValueError:
        return None


def _float(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


class Sampler:
    """Runs nvidia-smi once a second and writes to a file. It outlives the module that starts it; ``stop`` ends it by its id."""

    def __init__(self, folder: Path) -> None:
        self.samples, self._pid_file = folder / "gpu.csv", folder / "sampler.json"

    def start(self) -> bool:
        """Start sampling into an empty file. Returns False where there is no nvidia-smi."""
        self.stop()
        tool = shutil.which("nvidia-smi")
        self.samples.parent.mkdir(parents=True, exist_ok=True)
        self.samples.write_text("", encoding="utf-8")
        if tool is None:
            return False
        known = next((f for f in REASON_FIELDS if self._answers(tool, f)), None)
        query = f"{SAMPLE_QUERY},{known}" if known else SAMPLE_QUERY
        command = [tool, f"--query-gpu={query}", "--format=csv,noheader,nounits", "-l", "1"]
        # No Popen, which warns about a child that nobody waits for. The child keeps no file of the caller open.
        pid = os.posix_spawn(
            tool,
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.samples), os.O_WRONLY | os.O_APPEND, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
            setsid=True,
        )
        write_atomic(self._pid_file, to_json({"pid": pid, "command": command}))
        return True

    @staticmethod
    def _answers(tool: str, field: str) -> bool:
        try:
            words = [tool, f"--query-gpu={field}", "--format=csv,noheader"]
            return subprocess.run(words, capture_output=True, timeout=30, check=False).returncode == 0
        except (OSError, subprocess.SubprocessError):
            return False

    def stop(self) -> None:
        """End the sampler that ``start`` began, if it still runs."""
        known = read_json(self._pid_file)
        if not known:
            return
        pid = int(known["pid"])
        try:
            # The system reuses pids: end the process only if it is still the sampler.
            if b"--query-gpu=" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGTERM)
                time.sleep(0.2)
        except OSError:
            pass
        self._pid_file.unlink(missing_ok=True)

    def read(self) -> tuple[GpuLoad, ...]:
        """What was sampled, per GPU."""
        return parse_samples(self.samples.read_text(encoding="utf-8", errors="replace")) if self.samples.exists() else ()


def keep_smi_log(path: Path) -> SmiLog | None:
    """Write the report of ``nvidia-smi -q -x`` to ``path`` and return it; ``None`` where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        done = subprocess.run([tool, "-q", "-x"], capture_output=True, text=True, errors="replace", timeout=120, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    path.write_text(done.stdout, encoding="utf-8")
    return read_smi_log(path)


def read_smi_log(path: Path) -> SmiLog | None:
    try:
        return parse_smi_xml(path.read_text(encoding="utf-8"))
    except (OSError, UserError):
        return None
