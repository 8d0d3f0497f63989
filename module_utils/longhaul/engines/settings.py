"""The settings of an endpoint. Each is declared once, here; everything else that names settings reads these declarations.

What reads them: the role's defaults, argument_specs and documentation (``scripts/dev/engine-variables.py`` writes them),
the spec, the planner and the options of ``longhaul plan``, the sets of ``playbooks/compare.yml``, and preflight's refusal of
unknown ``engine_*`` names. What a setting becomes in argv is each engine's own knowledge and stands in its folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import UserError
from ..values import converted

PREFIX = "engine_"
HybridKv = Literal["on", "off", "default"]
Device = Literal["cuda", "rocm", "cpu"]
# Whether a set of playbooks/compare.yml may give the variable, and what holds where the set says nothing about it:
# "default" the role's default (it belongs to one engine), "inventory" what the inventory has (both engines share it).
Compare = Literal["default", "inventory", "never"]
# In the order of roles/engine/defaults/main.yml.
Section = Literal[
    "Where",
    "What",
    "Model",
    "Size",
    "Capacity: planned before the start, compared with the engine after it",
    "Network",
    "Start and stop",
    "Installation (runtime process)",
    "Image (runtime docker)",
    "Container (runtime docker)",
]
SECTIONS: tuple[str, ...] = get_args(Section)
ENGINE_DEFAULT = "the engine's own default"
_NOT_GIVEN: Any = object()


@dataclass(frozen=True)
class About:
    """What a declaration says beside name, type and default. It is kept in the field's metadata.

    ``help``: one sentence or two, without the default. ``empty``: what an empty value means. ``least`` and ``most`` are
    inclusive. ``default``: what the role's defaults say where that differs from the field's default (an expression of Jinja).
    ``option``: its option of ``longhaul plan``, where that is not its name.
    """

    help: str
    section: Section
    empty: str = ""
    least: float | None = None
    most: float | None = None
    compare: Compare = "default"
    default: Any = _NOT_GIVEN
    option: str = ""


def about(text: str, section: Section = "Size", **more: Any) -> dict[str, About]:
    """The metadata of a field that declares a setting."""
    return {"about": About(text, section, **more)}


@dataclass(frozen=True, kw_only=True)
class SizeSettings:
    """The settings that decide what fits: the plan takes each as it is, and ``longhaul plan`` has an option for each.

    ``None``, ``"auto"`` and ``"default"`` leave the choice to the engine. Sizes are plain integers, never suffixed strings: vLLM
    reads 8M as 8,388,608 but 8m as 8,000,000.
    """

    # fmt: off
    context_tokens: int = field(
        metadata=about("Context that one request may use, prompt and answer together: a plain number of tokens.", least=1,
            default=8192, option="--context"))
    tensor_parallel: int = field(
        default=1, metadata=about("GPUs that share every layer.", least=1, compare="inventory", option="--tp"))
    pipeline_parallel: int = field(
        default=1, metadata=about("GPUs that split the layers among them.", least=1, compare="inventory", option="--pp"))
    gpu_memory_utilization: float | None = field(
        default=None, metadata=about("Share of GPU memory that the engine may take (SGLang: for weights and KV pool).",
            least=0.05, most=1.0, empty=ENGINE_DEFAULT))
    hybrid_kv: HybridKv = field(
        default="default", metadata=about('Hybrid KV cache manager: "on", "off" or "default" (what this version does by itself).'))
    kv_cache_dtype: str = field(
        default="auto", metadata=about("Type of the KV cache: auto (as the model), bfloat16, fp8, fp8_e4m3 and so on.",
            option="--kv-dtype"))
    max_num_batched_tokens: int | None = field(
        default=None, metadata=about("Prompt tokens of one step (SGLang: chunked prefill size).", empty=ENGINE_DEFAULT))
    block_size_tokens: int | None = field(
        default=None, metadata=about("Tokens of one KV page (vLLM: block size, SGLang: page size); 128 suits FlashAttention 3.",
            empty=ENGINE_DEFAULT, option="--block-size"))
    max_num_seqs: int | None = field(
        default=None, metadata=about("Most requests in flight (SGLang: its request table grows with it).",
            empty=f"{ENGINE_DEFAULT} (SGLang: the most whose request table stays within 512 MiB per GPU)"))
    text_only: bool = field(default=True, metadata=about("Leave out the vision tower of a multimodal model.", compare="never"))
    enforce_eager: bool = field(default=False, metadata=about("Run without CUDA graphs and compilation."))
    swa_full_tokens_ratio: float | None = field(
        default=None, metadata=about("Local-attention pool as a share of the full pool; 0.02 fits Llama-4-Scout.",
            empty=ENGINE_DEFAULT))
    max_total_tokens: int | None = field(
        default=None, metadata=about("Most tokens of the KV pool.", empty="what the memory holds"))
    attention_backend: str | None = field(
        default=None, metadata=about("Attention kernels, under the engine's own name, such as FLASH_ATTN or fa3.",
            empty="the engine's choice"))
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class EngineSettings(SizeSettings):
    """What the operator wants of one endpoint, in engine-neutral terms.

    Of these, the plan takes device, dtype, quantization, cpu_kv_cache_gib and extra_env in terms of its own (capacity/gate.py).
    """

    # fmt: off
    model_path: str = field(
        metadata=about("Folder on the host that holds config.json.", "Model", compare="never",
            default="{{ model_store_result_path | default('') }}"))
    served_model_name: str = field(
        metadata=about("Name that clients ask for.", "Model", compare="never", default="{{ engine_model_path | basename }}"))
    host: str = field(default="127.0.0.1", metadata=about("Address to listen on.", "Network", compare="never"))
    port: int = field(default=8000, metadata=about("Port to listen on.", "Network", least=1, most=65535, compare="never"))
    device: Device = field(default="cuda", metadata=about("Kind of device that the engine runs on.", "What", compare="never"))
    dtype: str = field(
        default="auto", metadata=about("Type of the weights and sums: auto (as the model), bfloat16, float16.",
            compare="inventory"))
    quantization: str | None = field(
        default=None, metadata=about("Quantization of the weights when they are loaded, such as fp8.",
            empty="as the model is stored", compare="inventory"))
    load_format: str = field(
        default="auto", metadata=about("How weights are loaded: auto, dummy (random), runai_streamer and so on.", "Size",
            compare="inventory"))
    prefix_caching: bool | None = field(
        default=None, metadata=about("Prefix cache: true or false.", "Size", empty=ENGINE_DEFAULT, compare="never"))
    skip_tokenizer: bool = field(
        default=False, metadata=about("Start without a tokenizer and serve token ids only.", "Size", compare="never"))
    cpu_kv_cache_gib: float | None = field(default=None, metadata=about("KV cache on a CPU, in GiB.", empty="4 GiB"))
    api_key_file: str | None = field(
        default=None, metadata=about("File on the host that holds the API key.", "Network", empty="no key", compare="never",
            default=""))
    extra_args: tuple[str, ...] = field(default=(), metadata=about("More options of the engine, as a list of words.", "Size"))
    extra_env: Mapping[str, str] = field(
        default_factory=dict, metadata=about("More environment variables of the engine. No secrets."))
    # fmt: on


# The settings of the first release: they count in a spec's identity even where nobody set them. This list is closed. A setting
# that came later counts only where it is set, or a new release would restart every engine of a fleet.
FIRST_SETTINGS = frozenset(
    {
        "api_key_file", "attention_backend", "context_tokens", "cpu_kv_cache_gib", "device", "dtype", "enforce_eager",
        "extra_args", "extra_env", "gpu_memory_utilization", "host", "hybrid_kv", "kv_cache_dtype", "load_format",
        "max_num_batched_tokens", "max_num_seqs", "max_total_tokens", "model_path", "pipeline_parallel", "port",
        "prefix_caching", "quantization", "served_model_name", "skip_tokenizer", "swa_full_tokens_ratio", "tensor_parallel",
        "text_only",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One declared setting. ``kind`` is its type as text (``int | None``); ``default`` the field's, ``about.default`` the role's."""

    name: str
    kind: str
    default: Any
    required: bool
    choices: tuple[str, ...]
    about: About

    @property
    def variable(self) -> str:
        """Name of the operator's variable."""
        return PREFIX + self.name

    @property
    def option(self) -> str:
        """Its option of ``longhaul plan``."""
        return self.about.option or "--" + self.name.replace("_", "-")

    @property
    def role_default(self) -> Any:
        """What the role's defaults say: a value, or an expression of Jinja."""
        return self.unset if self.about.default is _NOT_GIVEN else self.about.default

    @property
    def unset(self) -> Any:
        """The value under which nobody set it, as a spec on disk holds it."""
        return list(self.default) if isinstance(self.default, tuple) else self.default

    def read(self, value: Any) -> Any:
        """``value`` as Ansible hands it over, coerced and held against choices. Raises UserError, which names the variable."""
        if value == "" and self.kind.endswith(("| None", "]")):
            # An empty text is how an inventory says "not set" of a number, a name or a list.
            return self.default
        if self.choices and isinstance(value, bool):
            # YAML reads a bare on or off as a boolean; the words are meant.
            value = "on" if value else "off"
        found = converted(self.variable, value, self.kind)
        if self.choices and found not in self.choices:
            quote = " (quote it in YAML)" if "on" in self.choices else ""
            words = ", ".join(self.choices[:-1]) + f" or {self.choices[-1]}"
            raise UserError(f"{self.variable} {found!r}", words, f"set {self.variable}{quote}")
        return found


def declared(settings: type) -> tuple[Setting, ...]:
    """The declarations of a dataclass, in their order."""
    hints = get_type_hints(settings)
    rows = []
    for item in dataclasses.fields(settings):
        if "about" not in item.metadata:
            raise TypeError(f"{item.name} of {settings.__name__} says nothing about itself")
        hint = hints[item.name]
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        default = None if required else item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        kind = "str" if choices else _kind(hint)
        rows.append(Setting(item.name, kind, default, required, choices, item.metadata["about"]))
    return tuple(rows)


def _kind(hint: Any) -> str:
    """``int``, ``float | None``, ``tuple[str, ...]``, ``Mapping[str, str]``: one spelling on every Python."""
    if get_origin(hint) is None:
        return str(hint.__name__)
    words = [_kind(arg) for arg in get_args(hint) if arg not in (type(None), ...)]
    if type(None) in get_args(hint):
        return f"{words[0]} | None"
    return f"tuple[{words[0]}, ...]" if get_origin(hint) is tuple else f"Mapping[{', '.join(words)}]"


SETTINGS: tuple[Setting, ...] = declared(EngineSettings)
SIZE_SETTINGS: tuple[Setting, ...] = declared(SizeSettings)
_BY_NAME = {setting.name: setting for setting in SETTINGS}


def settings_from(options: Mapping[str, Any]) -> EngineSettings:
    """Options under the settings' names (text is allowed where a number is meant) -> EngineSettings. UserError names the variable."""
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _BY_NAME:
            raise UserError(f"engine setting {name!r}", "one of " + ", ".join(sorted(_BY_NAME)), "remove or rename it")
        if value is not None:
            values[name] = _BY_NAME[name].read(value)
    for setting in SETTINGS:
        if setting.required and setting.name not in values:
            raise UserError(f"no {setting.variable}", "a value", f"set {setting.variable}")
    settings = EngineSettings(**values)
    for setting in SETTINGS:
        value = getattr(settings, setting.name)
        if setting.kind.startswith("int") and setting.about.least == 1 and value is not None and value < 1:
            raise UserError(f"{setting.variable} {value}", "a positive integer", f"set {setting.variable}")
    return settings


def size_values(settings: SizeSettings) -> dict[str, Any]:
    """What the plan takes from a deployment's settings as it is, by name."""
    return {size.name: getattr(settings, size.name) for size in SIZE_SETTINGS}


def counted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a spec that count in its identity: a later setting that nobody set does not."""
    return {
        name: value
        for name, value in settings.items()
        if name in FIRST_SETTINGS or name not in _BY_NAME or value != _BY_NAME[name].unset
    }
