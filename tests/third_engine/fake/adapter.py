"""A made-up engine, as a folder of module_utils/longhaul/engines would hold it. Its server is ``tests/third_engine/fake_server.py``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...errors import UserError
from ...models.architecture import ModelArchitecture
from ...physics.hardware import Gpu
from ...version import Version
from ..base import EngineCapacity, Launch, MetricNames
from ..diagnosis import COMMON_FAILURES, FailureMark, Phase, PhaseMark
from ..openai import OpenAiEngine
from ..rules import ALWAYS, check_extra_args, refuse_others
from ..settings import EngineSettings
from ..sizing import PlanSettings, Stage
from .sizing import FakeSizing

# The release has no option for more.
MOST_TOKENS = 100_000
_POOL = re.compile(r"fake: pool of (\d+) tokens")


class Fake(OpenAiEngine):
    """The adapter of the made-up engine. Stateless."""

    name = "fake"
    verified = ("1.0", "1.0")
    takes = ALWAYS | {"cpu_kv_cache_gib", "text_only"}
    phases = (
        PhaseMark("fake: starting", Phase.STARTING),
        PhaseMark("fake: loading", Phase.LOADING),
        PhaseMark("fake: pool of", Phase.SIZING_KV),
        PhaseMark("fake: serving", Phase.READY),
    )
    failures = (FailureMark("fake: no luck today", "it was not its day", "try again tomorrow"), *COMMON_FAILURES)
    log_opening = "fake: starting"
    log_signatures = ("fake: ",)
    health_path = "/ping"
    metrics = MetricNames(
        prompt_tokens="fake:prompt_tokens_total",
        generation_tokens="fake:generation_tokens_total",
        cache_queries_tokens="fake:prefix_cache_queries_total",
        cache_hits_tokens="fake:prefix_cache_hits_total",
        running="fake:num_requests_running",
        waiting="fake:num_requests_waiting",
        kv_usage="fake:kv_cache_usage_perc",
        preemptions=None,
        requests_finished="fake:request_success_total",
    )

    def launch(self, settings: EngineSettings, version: Version) -> Launch:
        """Settings -> argv (after the python executable)."""
        refuse_others(self.name, self.takes, settings)
        check_extra_args(settings)
        if settings.context_tokens > MOST_TOKENS:
            found, required = (
                f"engine_context_tokens {settings.context_tokens}",
                f"at most {MOST_TOKENS}, all that fake can count to",
            )
            raise UserError(found, required, "lower engine_context_tokens")
        argv = ["-m", "fake_server", "--model", settings.model_path, "--served-model-name", settings.served_model_name]
        argv += ["--host", settings.host, "--port", str(settings.port), "--max-model-len", str(settings.context_tokens)]
        return Launch((*argv, *settings.extra_args), dict(settings.extra_env), {})

    def image(self, version: str) -> str:
        """There is none; a name all the same."""
        return f"example.invalid/fake:{version}"

    def capacity_from_log(self, lines: Iterable[str]) -> EngineCapacity:
        """The one figure that it prints."""
        found = [int(match[1]) for line in lines if (match := _POOL.search(line))]
        return EngineCapacity(kv_cache_tokens=found[-1] if found else None)

    def stage_layers(self, layers: int, stages: int) -> list[int]:
        """The first stages take a remainder."""
        return [layers // stages + (number < layers % stages) for number in range(stages)]

    def sizing(self, model: ModelArchitecture, gpu: Gpu, s: PlanSettings, stages: tuple[Stage, ...] | None = None) -> FakeSizing:
        """Token slots of all layers."""
        return FakeSizing(model, gpu, s, stages or self.stages(model, s), s.max_num_batched_tokens or 512, "off")


ADAPTER = Fake()
