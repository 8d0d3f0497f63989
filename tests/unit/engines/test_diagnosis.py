"""Why a server died, read from its log alone."""

from __future__ import annotations

from longhaul.engines.diagnosis import LIFE, last_words
from longhaul.engines.registry import get_engine
from support.paths import LOGS, ROOT

VLLM = get_engine("vllm")


class TestLastWords:
    """Why a server died that served: from a real log of one that had no memory left for its first request."""

    REAL = (LOGS / "vllm-0.25.1-nccl-no-memory.log").read_text(encoding="utf-8").splitlines()
    READY = next(i for i, line in enumerate(REAL) if "Application startup complete" in line) + 1
    FULL = "no GPU memory left for NCCL's buffers (Failed to CUDA calloc async 40 bytes) | fix: lower gpu_memory_utilization"
    OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    BEGINS = f"{LIFE}9b4601023645: vllm 0.25.1"

    def test_the_launcher_writes_the_line_that_parts_the_lives(self) -> None:
        assert LIFE in (ROOT / "roles/engine/files/launch.py").read_text(encoding="utf-8")
        assert LIFE in self.REAL[0]
        assert LIFE in self.REAL[-1], "brought back after its death"

    def test_the_cause_without_the_loggers_words_and_the_fix(self) -> None:
        said = last_words(self.REAL[self.READY :], VLLM)
        assert said is not None
        assert said.startswith(self.FULL)
        assert "\n" not in said

    def test_what_fails_in_its_place_is_not_why_it_died(self) -> None:
        said = last_words([*self.REAL[self.READY :], "OSError: [Errno 98] Address already in use", self.BEGINS, self.OOM], VLLM)
        assert (said or "").startswith(self.FULL)
        quiet = ["INFO 11-25 17:49:33 [loggers.py:273] Running: 1 reqs", self.BEGINS, self.OOM]
        assert last_words(quiet, VLLM) is None

    def test_of_several_that_served_the_last_counts(self) -> None:
        lines = [self.OOM, self.BEGINS, *self.REAL[1:], "OSError: [Errno 98] Address already in use"]
        assert (last_words(lines, VLLM) or "").startswith(self.FULL)

    def test_without_a_known_cause_the_last_error_or_nothing(self) -> None:
        odd = "(EngineCore pid=9) ERROR 11-25 17:49:33 [core.py:1] some.module.OddError: the moon is in the wrong house"
        lines = [
            "(APIServer pid=9) INFO 11-25 17:49:30 [loggers.py:273] 0 errors so far",
            odd,
            '(APIServer pid=9) INFO:     127.0.0.1:1 - "POST /v1/completions HTTP/1.1" 500 Internal Server Error',
            "(APIServer pid=9) WARNING 11-25 17:49:37 [utils.py:626] worker was killed",
        ]
        assert last_words(lines, VLLM) == "some.module.OddError: the moon is in the wrong house"
        assert last_words(lines, VLLM, named=True) is None
        assert last_words([x for x in lines if x != odd], VLLM) is None
        assert last_words([], VLLM) is None

    def test_what_only_hides_the_cause_offers_no_fix(self) -> None:
        lines = ["ERROR [core.py:1233] EngineCore encountered a fatal error.", "ERROR [core.py:1233] ValueError: odd"]
        assert last_words(lines, VLLM, named=True) == "the engine process died (ValueError: odd)"
