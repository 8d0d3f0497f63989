"""The declared settings: what each says of itself, and that every engine takes or refuses each."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from longhaul.engines.registry import ENGINES, get_engine
from longhaul.engines.rules import Flag
from longhaul.engines.settings import FIRST_SETTINGS, SETTINGS, SIZE_SETTINGS, EngineSettings, counted, declared, settings_from
from longhaul.engines.sizing import PlanSettings
from longhaul.errors import UserError
from longhaul.version import Version

from .samples import OTHER, settings

BY_NAME = {setting.name: setting for setting in SETTINGS}
# The releases at both ends of what is supported: an option that came or went shows in one of them.
RELEASES = {engine.name: engine.verified for engine in ENGINES.values()}


def launches(engine: str, **changes: Any) -> list[Any]:
    """The engine's launch in its oldest and newest release; what is refused is the refusal's words."""
    found: list[Any] = []
    for version in RELEASES[engine]:
        try:
            found.append(get_engine(engine).launch(settings(**changes), Version.parse(version)))
        except UserError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("engine", sorted(ENGINES))
@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_every_engine_takes_or_refuses_every_setting(engine: str, name: str) -> None:
    value = BY_NAME[name].read(OTHER[name])
    # KV memory of a CPU engine means something only there.
    device = {"device": "cpu"} if name == "cpu_kv_cache_gib" and name in get_engine(engine).takes else {}
    plain, changed = launches(engine, **device), launches(engine, **{**device, name: value})
    if name in get_engine(engine).takes:
        assert plain != changed, f"{engine} takes {name} and makes nothing of it"
        assert not all(isinstance(launch, str) for launch in changed), changed
    else:
        words = f"found: engine_{name} with {engine} | required: a setting that this engine has | fix: remove engine_{name}"
        assert changed == [words] * len(changed)


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_an_engine_takes_only_what_is_declared(engine: str) -> None:
    assert set(get_engine(engine).takes) <= set(BY_NAME)


@pytest.mark.parametrize(
    ("flag", "changes", "words"),
    [
        (Flag("max_num_seqs", "--most"), {}, []),
        (Flag("max_num_seqs", "--most"), {"max_num_seqs": 0}, ["--most", "0"]),
        (Flag("tensor_parallel", "--tp", silent=(1,)), {}, []),
        (Flag("tensor_parallel", "--tp", silent=(1,)), {"tensor_parallel": 2}, ["--tp", "2"]),
        (Flag("dtype", "--dtype"), {}, []),
        (Flag("enforce_eager", "--eager"), {}, []),
        (Flag("enforce_eager", "--eager"), {"enforce_eager": True}, ["--eager"]),
        (Flag("max_num_seqs", "--most", since=Version.parse("1.1.0")), {"max_num_seqs": 1}, []),
        (Flag("max_num_seqs", "--most", since=Version.parse("1.0.0")), {"max_num_seqs": 1}, ["--most", "1"]),
        (Flag("max_num_seqs", "--most", until=Version.parse("1.0.0")), {"max_num_seqs": 1}, []),
    ],
)
def test_a_flag_says_what_was_set(flag: Flag, changes: dict[str, Any], words: list[str]) -> None:
    assert flag.words(settings(**changes), Version.parse("1.0.0")) == words


def test_every_size_is_an_input_of_the_plan_under_its_own_name() -> None:
    assert {setting.name for setting in SIZE_SETTINGS} <= {field.name for field in dataclasses.fields(PlanSettings)}
    options = [setting.option for setting in SIZE_SETTINGS]
    assert len(options) == len(set(options))


def test_a_field_that_says_nothing_of_itself_is_refused() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class More(EngineSettings):
        silent: bool = False

    with pytest.raises(TypeError, match="silent of More"):
        declared(More)


class TestReading:
    @pytest.mark.parametrize(
        ("name", "value", "read"),
        [
            ("max_num_seqs", "", None),
            ("max_num_seqs", "7", 7),
            ("quantization", "", None),
            ("api_key_file", "", None),
            ("prefix_caching", "no", False),
            ("extra_args", "", ()),
            ("extra_args", ["--seed", 1], ("--seed", "1")),
            ("extra_env", {"A": 1}, {"A": "1"}),
            ("hybrid_kv", True, "on"),
            ("gpu_memory_utilization", "0.9", 0.9),
        ],
    )
    def test_what_ansible_hands_over(self, name: str, value: Any, read: Any) -> None:
        assert BY_NAME[name].read(value) == read

    @pytest.mark.parametrize(
        ("name", "value", "required"),
        [
            ("device", "tpu", "cuda, rocm or cpu"),
            ("hybrid_kv", "maybe", "on, off or default"),
            ("extra_args", "--seed 1", "a list"),
            ("gpu_memory_utilization", True, "a number"),
            ("enforce_eager", "", "true or false"),
        ],
    )
    def test_what_does_not_fit_names_the_variable(self, name: str, value: Any, required: str) -> None:
        with pytest.raises(UserError) as caught:
            BY_NAME[name].read(value)
        assert caught.value.required == required
        assert caught.value.found.startswith(f"engine_{name} ")

    def test_what_must_be_set_is_asked_for(self) -> None:
        with pytest.raises(UserError, match="no engine_served_model_name"):
            settings_from({"model_path": "/m", "context_tokens": 8192})


class TestIdentity:
    def test_the_list_of_the_first_release_is_closed(self) -> None:
        """Add no name: a setting that came later must not count where nobody set it."""
        assert len(FIRST_SETTINGS) == 27
        assert set(BY_NAME) >= FIRST_SETTINGS

    @pytest.mark.parametrize("setting", [s for s in SETTINGS if s.name not in FIRST_SETTINGS], ids=lambda s: s.name)
    def test_a_later_setting_counts_only_where_it_is_set(self, setting: Any) -> None:
        assert counted({setting.name: setting.unset}) == {}
        assert counted({setting.name: OTHER[setting.name]}) == {setting.name: OTHER[setting.name]}

    def test_an_early_setting_and_an_unknown_one_always_count(self) -> None:
        assert counted({"max_num_seqs": None, "of_a_later_release": None}) == {"max_num_seqs": None, "of_a_later_release": None}
