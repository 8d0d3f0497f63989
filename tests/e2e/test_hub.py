"""The model store's source hub against a hub of our own: whole, resumed, unchanged, refused in one line, no token anywhere."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.environments import client_env
from support.hub import COMMIT, Hub, Repo, running_hub
from support.runner import Outcome, run_playbook

pytestmark = pytest.mark.e2e
TOKEN = "hf_lhTestTokenThatMustNotShow"
# The hub's client writes 10 MB at a time: what it resumes from must be more than that.
WEIGHTS = random.Random(7).randbytes(48 * 2**20)
PLAY = """
- name: Model
  hosts: all
  gather_facts: true
  tasks:
    - name: Bring the model
      ansible.builtin.include_role:
        name: model_store
"""


@dataclass(frozen=True)
class Story:
    """Two plays: a first download, then the same again beside hosts that must be refused."""

    hub: Hub
    folder: Path
    first: Outcome
    first_seen: int
    second: Outcome

    @property
    def model(self) -> Path:
        return self.folder / "good" / "models" / "org--gated"


def play(folder: Path, hub: Hub, hosts: dict[str, dict[str, Any]]) -> Outcome:
    """The role on hosts of this machine, each with a home of its own. The token is an inventory's, as out of a vault."""
    made: dict[str, Any] = {}
    for name, more in hosts.items():
        home = folder / name
        home.mkdir(exist_ok=True)
        if not (home / "client").exists():
            (home / "client").symlink_to(client_env())
        made[name] = {"longhaul_home": str(home), **more}
    shared = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "model_store_source": "hub",
        "model_store_hub_endpoint": hub.url,
        "model_store_hub_revision": "main",
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": made, "vars": shared}}), encoding="utf-8")
    (folder / "play.yml").write_text(PLAY, encoding="utf-8")
    return run_playbook(str(folder / "play.yml"), {}, inventory=folder / "hosts.yml", cmdline="-vvv", timeout_s=240)


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    """One hub, two plays."""
    files = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS, "tokenizer.json": b"{}"}
    rest = {"pytorch_model.pth": b"x" * 100, "original/params.json": b"{}", "README.md": b"not needed"}
    repos = {
        "org/gated": Repo({**files, **rest}, gated=True, cuts={"model.safetensors": 2}),
        "org/huge": Repo(files, claimed_bytes={"model.safetensors": 10**15}),
        "org/bare": Repo({"model.safetensors": b"x"}),
    }
    good = {"model_store_hub_repo": "org/gated", "model_store_hub_token": TOKEN}
    with tempfile.TemporaryDirectory(prefix="lh-hub-") as name, running_hub(repos, TOKEN) as hub:
        folder = Path(name)
        first = play(folder, hub, {"good": good})
        seen = len(hub.seen)
        refused = {
            "no-token": {"model_store_hub_repo": "org/gated"},
            "huge": {"model_store_hub_repo": "org/huge"},
            "bare": {"model_store_hub_repo": "org/bare"},
            "missing": {"model_store_hub_repo": "org/nowhere"},
            "no-file": {"model_store_hub_repo": "org/gated", "model_store_hub_token_file": "/nowhere/token"},
        }
        yield Story(hub, folder, first, seen, play(folder, hub, {"good": good, **refused}))


def said(outcome: Outcome, host: str) -> str:
    """The message of the host's one failure; one line."""
    lost = [h for _, h, event in outcome.tasks if event in ("failed", "unreachable")]
    (found,) = [m for h, m in zip(lost, outcome.messages, strict=True) if h == host]
    assert "\n" not in found
    assert found.startswith("found: ")
    return found


def test_a_download_that_broke_off_twice_is_whole(story: Story) -> None:
    assert story.first.rc == 0, story.first.text[-4000:]
    assert (story.model / "model.safetensors").read_bytes() == WEIGHTS
    stamp = (story.model / "longhaul-model.json").read_text(encoding="utf-8")
    assert COMMIT in stamp, "the commit, not the branch, is what is stored"
    transfers = [s for s in story.hub.seen[: story.first_seen] if s.method == "GET" and s.path.endswith("model.safetensors")]
    assert [s.start for s in transfers][:1] == [0]
    assert len(transfers) == 3
    assert 0 < transfers[1].start < transfers[2].start < len(WEIGHTS), "each goes on where the last one ended"


def test_only_what_serves_is_fetched(story: Story) -> None:
    names = {p.name for p in story.model.iterdir() if p.is_file()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "longhaul-model.json"}


def test_a_second_run_changes_and_fetches_nothing(story: Story) -> None:
    changed = [task for task, host, event in story.second.tasks if host == "good" and event == "changed"]
    assert changed == []
    again = [s for s in story.hub.seen[story.first_seen :] if s.authorized]
    assert again, "it does ask which commit the branch is at"
    assert [s.path for s in again if "/resolve/" in s.path] == []


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("no-token", ["GatedRepoError", "org/gated", "accept the licence", "model_store_hub_token_file"]),
        ("huge", ["GiB free for", "931322.", "org/huge", "model_store_dir"]),
        ("bare", ["org/bare has no config.json", "model_store_hub_repo"]),
        ("missing", ["RepositoryNotFoundError", "model_store_hub_repo"]),
        ("no-file", ["token file /nowhere/token", "model_store_hub_token_file"]),
    ],
)
def test_refusals_are_one_line(story: Story, host: str, words: list[str]) -> None:
    text = said(story.second, host)
    for word in words:
        assert word in text
    assert not (story.folder / host / "models").exists() or not list((story.folder / host / "models").glob("**/*.safetensors"))


def test_the_token_shows_nowhere(story: Story) -> None:
    for outcome in (story.first, story.second):
        assert "invocation" in outcome.text, "the run was verbose enough to have shown it"
        assert TOKEN not in outcome.text
        assert TOKEN not in outcome.events
    assert any(s.authorized for s in story.hub.seen), "it was used"
    assert not any(TOKEN.encode() in s.argvs for s in story.hub.seen), "no command line of the machine ever held it"
    kept = story.folder / "good" / "secrets" / "hub-token"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    for path in (story.folder / "good").rglob("*"):
        if path.is_file() and path != kept and not path.is_relative_to(story.folder / "good" / "client"):
            assert TOKEN.encode() not in path.read_bytes(), path
