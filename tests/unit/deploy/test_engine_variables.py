"""The table of the role's variables: files that are written from it, names that are refused, what modules and comparisons take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.plugins.loader import lookup_loader
from longhaul.deploy.compare_sets import KNOWN, REQUIRED, check_sets, side
from longhaul.deploy.engine_variables import (
    NAMES,
    VARIABLES,
    container_options,
    inputs,
    setting_options,
    unknown_variables,
)
from longhaul.deploy.preflight import check_engine
from longhaul.deploy.runtimes.container import ContainerSettings
from longhaul.engines.settings import SETTINGS, settings_from
from support.paths import ROOT
from support.role_variables import role_variables

SCRIPT = ROOT / "scripts/dev/engine-variables.py"


def test_the_written_files_are_as_declared() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_row_is_a_variable_of_its_own() -> None:
    names = [row.name for row in VARIABLES]
    assert len(names) == len(set(names))
    assert {row.setting.name for row in VARIABLES if row.setting} == {setting.name for setting in SETTINGS}
    for row in VARIABLES:
        assert row.help.endswith("."), row.name
        assert row.help[0].isupper(), row.name
    # What a set may leave out must have a value that a comparison can use as it is.
    assert [row.name for row in VARIABLES if row.compare != "never" and row.name not in REQUIRED and row.is_computed] == []


def test_every_field_of_a_container_has_a_variable() -> None:
    fields = set(ContainerSettings.__dataclass_fields__)
    # The tasks add both: from the image that was found on the host.
    assert {row.container for row in VARIABLES if row.container} == fields - {"digest", "image_id"}


class TestUnknownNames:
    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("engine_gpu_memory_utilisation", "engine_gpu_memory_utilization"),
            ("engine_block_size", "engine_block_size_tokens"),
            ("engine_max_num_seq", "engine_max_num_seqs"),
            ("engine_contextTokens", "engine_context_tokens"),
            ("engine_container_shmsize", "engine_container_shm_size"),
        ],
    )
    def test_a_slip_is_told_the_nearest_name(self, name: str, meant: str) -> None:
        (finding,) = unknown_variables([name, "engine_name"])
        assert finding.found.startswith(f"{name}, ")
        assert f"write {meant};" in finding.fix
        assert finding.severity == "refuse"

    def test_a_name_near_to_none_has_no_suggestion(self) -> None:
        (finding,) = unknown_variables(["engine_zzz"])
        assert finding.fix.startswith("remove it;")

    def test_what_is_known_and_what_tasks_register_passes(self) -> None:
        assert unknown_variables([*NAMES, "engine_result_status", "engine_result_compared"]) == []

    def test_what_is_shipped_sets_only_known_names(self) -> None:
        files = [*ROOT.glob("inventory/*/group_vars/*.yml"), *ROOT.glob("vars/sets/*.yml"), *ROOT.glob("group_vars/*.yml")]
        assert len(files) > 15
        for path in files:
            assert unknown_variables(yaml.safe_load(path.read_text()) or {}) == [], path

    def test_preflight_asks(self) -> None:
        plain = {"model_path": "/m", "served_model_name": "m", "context_tokens": 1, "port": 1, "tensor_parallel": 1}
        options = {
            "name": "vllm",
            "version": "0.12.0",
            "runtime": "docker",
            "settings": {**plain, "pipeline_parallel": 1},
            "variables": ["engine_tensor_paralel", "engine_port"],
        }
        (finding,) = check_engine(options)
        assert str(finding) == (
            "found: engine_tensor_paralel, which nothing reads | required: a variable of role engine "
            "(docs/variables/engine.md) | fix: write engine_tensor_parallel; give a variable of your own another prefix"
        )


class TestModules:
    def test_the_lookup_gives_every_setting_and_every_field_of_a_container(self) -> None:
        found = role_variables(ROOT / "inventory/h200/group_vars/all.yml")
        assert set(found["__engine_settings"]) == {setting.name for setting in SETTINGS}
        assert settings_from(found["__engine_settings"]).context_tokens == 2_097_152
        assert set(found["__engine_container"]) == set(ContainerSettings.__dataclass_fields__)

    @pytest.mark.parametrize(
        ("engine", "version", "image"),
        [
            ("vllm", "0.12.0", "vllm/vllm-openai:v0.12.0"),
            ("sglang", "0.5.6.post2", "lmsysorg/sglang:v0.5.6.post2-runtime"),
        ],
    )
    def test_the_image_is_the_engines_own(self, engine: str, version: str, image: str) -> None:
        assert role_variables(engine_name=engine, engine_version=version)["engine_image"] == image

    def test_the_lookup_refuses_what_it_does_not_know(self) -> None:
        with pytest.raises(AnsibleError, match="settings and container"):
            lookup_loader.get("longhaul_engine").run(["argv"], variables={})

    @pytest.mark.parametrize(
        ("runtime", "device", "expected"),
        [
            ("process", "cuda", {"A": "1", "CUDA_VISIBLE_DEVICES": "0,1"}),
            ("docker", "cuda", {"A": "1"}),
            ("process", "cpu", {"A": "1"}),
        ],
    )
    def test_a_process_is_shown_its_gpus(self, runtime: str, device: str, expected: dict[str, str]) -> None:
        chosen = {"engine_runtime": runtime, "engine_device": device, "engine_gpus": [0, 1], "engine_extra_env": {"A": "1"}}
        assert setting_options(chosen)["extra_env"] == expected
        assert container_options(chosen)["gpus"] == [0, 1]

    def test_what_is_read_is_named(self) -> None:
        """The lookup templates these and nothing else: a password of the registry is never among them."""
        for part, options in (("settings", setting_options), ("container", container_options)):
            everything: dict[str, Any] = {row.name: {} for row in VARIABLES}
            assert options({name: everything[name] for name in inputs(part)}) == options(everything)
            assert "engine_registry_password" not in inputs(part)


class TestCompare:
    SET: dict[str, Any] = {  # noqa: RUF012 - read only
        "engine_name": "vllm",
        "engine_version": "0.12.0",
        "engine_image": "vllm/vllm-openai:v0.12.0",
        "engine_context_tokens": 65536,
    }

    def findings(self, a: dict[str, Any], b: dict[str, Any]) -> list[str]:
        return [str(f) for f in check_sets(["a.yml", "b.yml"], [a, b])]

    def test_two_plain_sets_pass(self) -> None:
        assert self.findings(self.SET, {**self.SET, "engine_name": "sglang"}) == []

    def test_one_file_is_no_comparison(self) -> None:
        (finding,) = check_sets(["a.yml"], [self.SET])
        assert finding.found == "compare_sets with 1 files"

    @pytest.mark.parametrize(
        ("more", "found", "fix"),
        [
            ({"engine_gpus": [0]}, "found: engine_gpus in b.yml", "fix: remove it from the set"),
            ({"engine_blok_size_tokens": 64}, "found: engine_blok_size_tokens in b.yml", "fix: write engine_block_size_tokens"),
            ({"context_test_ladder_tokens": [1]}, "found: two different ladders", "fix: correct compare_sets"),
        ],
    )
    def test_what_would_make_it_a_lie_is_refused(self, more: dict[str, Any], found: str, fix: str) -> None:
        (text,) = self.findings(self.SET, {**self.SET, **more})
        assert text.startswith(found)
        assert text.endswith(fix)

    def test_what_is_missing_is_named_with_its_file(self) -> None:
        (text,) = self.findings({k: v for k, v in self.SET.items() if k != "engine_image"}, self.SET)
        assert text.startswith("found: no engine_image in a.yml")

    def test_what_belongs_to_one_engine_is_not_taken_from_the_inventory(self) -> None:
        host = {"engine_gpu_memory_utilization": 0.5, "engine_extra_args": ["--x"], "engine_port": 9, "engine_tensor_parallel": 8}
        taken = side(self.SET, host)
        assert taken["engine_gpu_memory_utilization"] is None
        assert taken["engine_extra_args"] == []
        assert taken["engine_tensor_parallel"] == 8, "both engines share what the GPUs are"
        assert "engine_port" not in taken
        assert set(taken) == set(KNOWN)
        assert taken["context_test_ladder_tokens"] == [1000]

    def test_the_set_has_the_last_word(self) -> None:
        taken = side({**self.SET, "engine_tensor_parallel": 2, "context_test_ladder_tokens": [5]}, {"engine_tensor_parallel": 8})
        assert taken["engine_tensor_parallel"] == 2
        assert taken["context_test_ladder_tokens"] == [5]

    def test_both_sides_state_the_same_variables(self) -> None:
        """What one side sets, the other sets too: nothing is left over from the side before."""
        sets = [yaml.safe_load(path.read_text()) for path in sorted(Path(ROOT / "vars/sets").glob("*.yml"))]
        assert {frozenset(side(said, {})) for said in sets} == {frozenset(KNOWN)}
