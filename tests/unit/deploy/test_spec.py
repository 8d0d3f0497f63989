"""The spec: its identity, the state machine of current and previous, settings as Ansible passes them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from longhaul.deploy.layout import Layout
from longhaul.deploy.rolling import proven
from longhaul.deploy.spec import Spec, load_spec, render_spec, require_spec, restore_previous, spec_id, store_spec
from longhaul.engines.registry import get_engine
from longhaul.engines.settings import settings_from
from longhaul.errors import UserError
from longhaul.files import to_json, write_atomic
from support.paths import DATA
from unit.engines.samples import OTHER

SPECS = DATA / "specs"
PLAIN = {"model_path": "/models/m", "served_model_name": "m", "context_tokens": 8192}
PLAIN_ID = "1c49aaa82c01"
SGLANG_ONLY = sorted(set(OTHER) - set(get_engine("vllm").takes))


def render(options: dict[str, Any] | None = None, engine: str = "vllm", **changes: Any) -> Spec:
    """A spec with all else fixed."""
    fixed: dict[str, Any] = {"instance": "default", "python": "/e/bin/python", "environment_hash": "h"}
    version = changes.pop("version", "0.12.0" if engine == "vllm" else "0.5.6.post2")
    runtime = changes.pop("runtime", "process")
    return render_spec(engine, version, runtime, settings_from({**PLAIN, **(options or {})}), **{**fixed, **changes})


class TestIdentity:
    def test_a_new_release_restarts_nothing_for_a_setting_that_nobody_set(self) -> None:
        # As an earlier release rendered it: the id is pinned, so that a setting that is added breaks this until it counts as later.
        spec = render()
        assert spec.settings.block_size_tokens is None
        assert spec.spec_id == PLAIN_ID
        settings = {k: v for k, v in spec.document["settings"].items() if k != "block_size_tokens"}
        assert spec_id({**spec.document, "settings": settings}) == spec.spec_id

    @pytest.mark.parametrize("name", sorted(OTHER))
    def test_sensitive_to_every_setting(self, name: str) -> None:
        engine = "sglang" if name in SGLANG_ONLY else "vllm"
        assert render({name: OTHER[name]}, engine).spec_id != render(engine=engine).spec_id

    @pytest.mark.parametrize(
        "change",
        [
            {"version": "0.13.0"},
            {"runtime": "docker"},
            {"instance": "two"},
            {"python": "/f/bin/python"},
            {"environment_hash": "g"},
            {"container": {"image": "a", "digest": "sha256:1"}},
            {"model": {"revision": "abc"}},
        ],
    )
    def test_sensitive_to_what_is_around_the_settings(self, change: dict[str, Any]) -> None:
        assert render(**change).spec_id != render().spec_id

    def test_stable_over_processes_and_disk(self, tmp_path: Path) -> None:
        where = Layout(tmp_path)
        spec = render(OTHER | dict.fromkeys(SGLANG_ONLY))
        store_spec(where, spec)
        again = load_spec(where)
        assert again is not None
        assert again == spec
        assert spec_id(again.document) == spec.spec_id
        assert len(spec.spec_id) == 12

    @given(st.permutations(sorted(set(OTHER) - set(SGLANG_ONLY))))
    def test_order_and_spelling_of_the_options_do_not_matter(self, order: list[str]) -> None:
        """Ansible hands numbers and booleans over as text as often as not."""
        words = {n: str(OTHER[n]) if isinstance(OTHER[n], (bool, int, float)) else OTHER[n] for n in order}
        assert render(words).spec_id == render({n: OTHER[n] for n in sorted(words)}).spec_id

    def test_no_secret_is_in_it(self, tmp_path: Path) -> None:
        key = tmp_path / "key"
        key.write_text("hunter2hunter2", encoding="utf-8")
        spec = render({"api_key_file": str(key)})
        assert "hunter2" not in json.dumps(dict(spec.document))
        assert spec.secret_env == {"VLLM_API_KEY": str(key)}
        assert str(key) not in " ".join(spec.argv)

    @pytest.mark.parametrize(
        ("host", "url"),
        [
            ("0.0.0.0", "http://127.0.0.1:8000"),
            ("::", "http://127.0.0.1:8000"),
            ("::1", "http://[::1]:8000"),
            ("10.0.0.5", "http://10.0.0.5:8000"),
        ],
    )
    def test_url_can_be_asked_on_the_host(self, host: str, url: str) -> None:
        assert render({"host": host}).url == url


class TestSettings:
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("context_tokens", "2M"),
            ("context_tokens", 0),
            ("context_tokens", -8192),
            ("context_tokens", True),
            ("context_tokens", 1.5),
            ("port", "http"),
            ("tensor_parallel", 0),
            ("gpu_memory_utilization", "most"),
            ("enforce_eager", "maybe"),
            ("hybrid_kv", "sometimes"),
        ],
    )
    def test_a_bad_value_names_the_variable_that_the_operator_set(self, option: str, value: Any) -> None:
        with pytest.raises(UserError, match=f"engine_{option}"):
            settings_from({**PLAIN, option: value})

    def test_an_unknown_setting_lists_the_known(self) -> None:
        with pytest.raises(UserError, match=r"max_model_len.*context_tokens"):
            settings_from({**PLAIN, "max_model_len": 1})

    def test_none_means_the_engines_default(self) -> None:
        assert settings_from({**PLAIN, "prefix_caching": None, "max_num_seqs": None}) == settings_from(PLAIN)

    @pytest.mark.parametrize(("word", "meant"), [(True, "on"), (False, "off"), ("default", "default")])
    def test_yaml_reads_a_bare_on_as_true(self, word: Any, meant: str) -> None:
        assert settings_from({**PLAIN, "hybrid_kv": word}).hybrid_kv == meant


GOLDEN = {
    "vllm-docker": "3fb960f05cfd",
    "sglang-docker": "a7c89a445f56",
    "vllm-process": "5a8e38908bc4",
    # Written by a release that did not know block_size_tokens.
    "vllm-process-older": "5a8e38908bc4",
}


class TestOlderReleases:
    """Files and ids as an earlier release wrote them: an upgrade restarts no engine."""

    @pytest.mark.parametrize("name", sorted(GOLDEN))
    def test_a_spec_on_disk_loads_and_keeps_its_id(self, name: str, tmp_path: Path) -> None:
        text = (SPECS / f"{name}.json").read_text(encoding="utf-8")
        where = Layout(tmp_path)
        where.current_spec.parent.mkdir()
        where.current_spec.write_text(text, encoding="utf-8")
        spec = require_spec(where)
        assert spec.spec_id == GOLDEN[name] == spec_id(spec.document)
        assert to_json(spec.document) == text, "written again it is the same file, byte for byte"

    @pytest.mark.parametrize("name", sorted(GOLDEN))
    def test_the_same_settings_render_to_the_same_id(self, name: str) -> None:
        old = Spec.parse(json.loads((SPECS / f"{name}.json").read_text(encoding="utf-8")), name)
        new = render_spec(
            old.engine, old.version, old.runtime, old.settings, instance=old.instance, python=old.argv[0],
            environment_hash=old.environment_hash, container=old.container, model=old.model,
        )  # fmt: skip
        assert new.spec_id == old.spec_id
        assert {**new.document, "settings": None} == {**old.document, "settings": None}

    def test_what_a_newer_release_wrote_is_kept_and_not_acted_upon(self, tmp_path: Path) -> None:
        document = render().document
        newer = {**document, "settings": {**document["settings"], "warp_factor": 9}, "more": True}
        spec = Spec.parse(newer, "x")
        assert spec.settings == render().settings
        store_spec(Layout(tmp_path), spec)
        assert json.loads(Layout(tmp_path).current_spec.read_text(encoding="utf-8")) == newer


class TestDamage:
    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"schema": None}, "schema None"),
            ({"spec_id": 7}, "has spec_id 7"),
            ({"argv": "python -m vllm"}, "has argv 'python -m vllm'"),
            ({"env": []}, "has env []"),
            ({"settings": None}, "has settings None"),
            ({"settings": {"port": 1}}, "unusable settings"),
            (
                {"settings": {"model_path": "/m", "served_model_name": "m", "context_tokens": "many"}},
                "engine_context_tokens 'many'",
            ),
            ({"container": "image"}, "has container 'image'"),
        ],
    )
    def test_a_damaged_file_is_one_line_that_names_it(self, tmp_path: Path, change: dict[str, Any], word: str) -> None:
        where = Layout(tmp_path)
        write_atomic(where.current_spec, to_json({**render().document, **change}))
        with pytest.raises(UserError) as caught:
            load_spec(where)
        text = str(caught.value)
        assert word in text
        assert str(where.current_spec) in text
        assert "\n" not in text
        assert "required: " in text
        assert "fix: " in text

    @pytest.mark.parametrize("name", ["spec_id", "instance", "engine", "version", "runtime", "argv", "env", "settings", "url"])
    def test_what_is_missing_is_named(self, name: str) -> None:
        document = {k: v for k, v in render().document.items() if k != name}
        with pytest.raises(UserError, match=f"the file has no {name}"):
            Spec.parse(document, "the file")

    def test_a_spec_cannot_be_changed(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            render().url = "http://elsewhere"  # type: ignore[misc]


class TestDisk:
    def test_nothing_deployed_says_so(self, tmp_path: Path) -> None:
        assert load_spec(Layout(tmp_path)) is None
        with pytest.raises(UserError, match="nothing deployed"):
            require_spec(Layout(tmp_path))
        with pytest.raises(UserError, match="earlier deployment"):
            restore_previous(Layout(tmp_path))

    def test_another_schema_is_refused(self, tmp_path: Path) -> None:
        where = Layout(tmp_path)
        where.current_spec.parent.mkdir()
        where.current_spec.write_text('{"schema": "longhaul.spec/0"}', encoding="utf-8")
        with pytest.raises(UserError, match=r"longhaul\.spec/0"):
            load_spec(where)

    def test_a_dry_run_says_what_would_happen_and_writes_nothing(self, tmp_path: Path) -> None:
        where = Layout(tmp_path)
        assert store_spec(where, render(), dry_run=True) == (True, None)
        assert list(tmp_path.iterdir()) == []
        store_spec(where, render())
        files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        changed, before = store_spec(where, render({"max_num_seqs": 3}), dry_run=True)
        assert changed
        assert before == render()
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files


class Deployments(RuleBasedStateMachine):
    """Deploy, prove, roll back in any order: what a rollback returns to was proven once and is not what is deployed."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lh-spec-"))
        self.where = Layout(self.folder)
        self.current: Spec | None = None
        self.in_doubt: set[str] = set()
        self.good: set[str] = set()

    @property
    def previous(self) -> Spec | None:
        return load_spec(self.where, "previous")

    @rule(seqs=st.integers(1, 4))
    def deploy(self, seqs: int) -> None:
        wanted, was = render({"max_num_seqs": seqs}), self.previous
        changed, before = store_spec(self.where, wanted)
        assert before == self.current
        assert changed == (wanted != self.current)
        if not changed:
            return
        if before is not None and before.spec_id not in self.in_doubt:
            assert self.previous == before
        elif was != wanted:
            assert self.previous == was
        self.current = wanted
        self.in_doubt = {wanted.spec_id}

    @rule()
    def prove(self) -> None:
        proven(self.where)
        self.in_doubt = set()
        if self.current is not None:
            self.good.add(self.current.spec_id)

    @rule()
    def roll_back(self) -> None:
        was = self.previous
        if was is None:
            with pytest.raises(UserError, match="an earlier deployment to return to"):
                restore_previous(self.where)
            return
        assert restore_previous(self.where) == (was, self.current)
        assert self.current is not None
        if self.current.spec_id not in self.in_doubt:
            assert self.previous == self.current
        # What was good once must show that it still is.
        self.current, self.in_doubt = was, {was.spec_id}

    @invariant()
    def disk_agrees(self) -> None:
        assert load_spec(self.where) == self.current
        previous = self.previous
        if previous is not None:
            assert previous.spec_id in self.good
            assert previous != self.current

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestDeployments = Deployments.TestCase
TestDeployments.settings = settings(
    max_examples=60, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("victim", ["previous.json", "current.json"])
def test_a_crash_between_the_writes_leaves_a_complete_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    where = Layout(tmp_path)
    old, new = render(), render({"max_num_seqs": 3})
    store_spec(where, old)
    proven(where)
    replace = Path.replace

    def crash(self: Path, target: Path) -> Path:
        if Path(target).name == victim:
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(UserError):
        store_spec(where, new)
    monkeypatch.undo()
    assert load_spec(where) == old
    # The next run gets there, and the good one is still the one to return to.
    store_spec(where, new)
    assert load_spec(where) == new
    assert load_spec(where, "previous") == old
