"""The plan's arithmetic, line by line, for people."""

from __future__ import annotations

from dataclasses import dataclass

from ..engines.sizing import Pool, Sizing
from ..physics.hardware import GIB


@dataclass(frozen=True)
class Step:
    """One line of the arithmetic that ``--explain`` shows. ``exact`` is False for an estimate."""

    label: str
    value: str
    how: str
    exact: bool = True


def explain_steps(sizing: Sizing, pool: Pool, margin: int, exact: bool) -> list[Step]:
    s, model = sizing.settings, sizing.model
    weights = max(x.weights_bytes for x in sizing.stages)
    what = f"{(model.parameters if s.text_only else model.total_parameters) / 1e9:.2f}e9 parameters"
    steps = [
        Step("weights a GPU", f"{weights / GIB:.2f} GiB", f"{what}, TP{s.tensor_parallel} x PP{s.pipeline_parallel}"),
        Step(
            "rotary table",
            f"{sizing.rope / GIB:.2f} GiB",
            f"{model.rope_positions:,} positions x {model.rope_dim} x {sizing.rope_element_bytes} B",
        ),
    ]
    if sizing.load_slack_bytes:
        how = "blocks of bf16 originals that no fp8 tensor fills (PyTorch's allocator, max_split_size 20 MiB)"
        steps.append(Step("slack of the load", f"{sizing.load_slack_bytes / GIB:.2f} GiB", how))
    if exact:
        how = f"given: {s.available_kv_gib} GiB"
        steps.append(Step("KV memory a GPU", f"{pool.available_bytes / GIB:.2f} GiB", how))
    else:
        slack = " - slack" if sizing.load_slack_bytes else ""
        usable = f"{sizing.gpu.usable_bytes / GIB:.2f} GiB usable"
        how = f"{usable} x share - weights - rotary table{slack} - run-time overhead (estimated)"
        steps.append(Step("KV memory a GPU", f"{pool.available_bytes / GIB:.2f} GiB +- {margin / GIB:.1f}", how, exact=False))
    cell = sizing.layer_token_bytes
    if model.mla:
        how = f"MLA latent {model.mla.cache_width} elements, {sizing.kv_dtype}, whole on every GPU"
    else:
        heads = max(1, model.kv_heads // s.tensor_parallel)
        how = f"2 x {heads} KV heads x {model.head_dim} x {sizing.kv_dtype_bytes:g} B"
    steps.append(Step("KV a token and layer", f"{cell:,} B", how))
    for number, group in enumerate(sizing.groups, 1):
        width = "every token" if group.window_tokens is None else f"{group.window_tokens:,} tokens"
        steps.append(Step(f"group {number}", f"{len(group.layers)} layers", f"{group.kind.value}, keeps {width}"))
    steps += [Step(*row) for row in sizing.own_steps()]
    steps.append(Step("pool", f"{pool.tokens:,} tokens", sizing.pool_sum(pool), exact=exact))
    steps += [
        Step(label, f"{b / GIB:.2f} GiB", "outside the pool, grows with the context") for label, b in sizing.fixed_costs(pool)
    ]
    return steps
