"""Atomic writes, JSON on disk, free space, progress lines, paths of an endpoint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.deploy.layout import SOCKET_PATH_MAX, Layout, layout
from longhaul.errors import UserError
from longhaul.files import free_bytes, read_json, require_free, to_json, write_atomic
from longhaul.progress import ProgressWriter, parse_progress


def left_behind(folder: Path) -> list[str]:
    """Names of files in a folder, hidden ones too."""
    return sorted(p.name for p in folder.iterdir())


class TestWriteAtomic:
    def test_makes_parents_and_sets_the_mode(self, tmp_path: Path) -> None:
        target = tmp_path / "a" / "b" / "secret"
        write_atomic(target, "text\n", 0o600)
        assert target.read_text(encoding="utf-8") == "text\n"
        assert target.stat().st_mode & 0o777 == 0o600
        assert left_behind(target.parent) == ["secret"]

    @pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_a_failure_at_any_step_leaves_the_old_file_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
    ) -> None:
        target = tmp_path / "current.json"
        target.write_text("old", encoding="utf-8")

        def fail(*_: Any) -> None:
            raise error

        monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, step)), fail)
        expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as caught:
            write_atomic(target, "new")
        monkeypatch.undo()
        assert target.read_text(encoding="utf-8") == "old"
        assert left_behind(tmp_path) == ["current.json"]
        if isinstance(caught.value, UserError):
            assert "No space left on device" in caught.value.found
            assert str(target) in caught.value.found

    def test_a_folder_that_cannot_be_made_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("", encoding="utf-8")
        with pytest.raises(UserError, match="cannot be written") as caught:
            write_atomic(tmp_path / "file" / "below", "x")
        assert "\n" not in str(caught.value)


class TestJson:
    def test_what_is_not_there_is_none(self, tmp_path: Path) -> None:
        assert read_json(tmp_path / "none.json") is None

    @pytest.mark.parametrize("text", ["{", "[1]", '"x"', "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")])
    def test_damage_names_the_file(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "spec.json"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"spec\.json"):
            read_json(path)

    @given(st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.none(), st.lists(st.booleans()))))
    def test_text_depends_on_content_not_on_order(self, value: dict[str, Any]) -> None:
        text = to_json(value)
        assert to_json(dict(reversed(value.items()))) == text
        assert json.loads(text) == value


class TestFreeSpace:
    def test_asks_the_file_system_that_will_hold_the_path(self, tmp_path: Path) -> None:
        assert free_bytes(tmp_path / "not" / "there" / "yet") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)

    def test_refusal_has_both_figures(self, tmp_path: Path) -> None:
        require_free(tmp_path, 1, "a byte", "-")
        with pytest.raises(UserError) as caught:
            require_free(tmp_path, 2**60, "a model", "free space")
        assert caught.value.required == "1073741824.0 GiB for a model"
        assert "GiB free" in caught.value.found


texts = st.lists(st.text(min_size=1, max_size=20), max_size=8)


class TestProgress:
    @given(texts, st.booleans(), st.data())
    def test_any_chunking_gives_every_line_once_and_in_order(self, said: list[str], ended: bool, data: st.DataObject) -> None:
        """A reader that polls by offset sees what was written, wherever a read happens to end."""
        whole = "".join(json.dumps({"t": 1.0, "text": t}) + "\n" for t in said)
        whole += json.dumps({"t": 2.0, "done": True}) + "\n" if ended else ""
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
        offset, heard, done = 0, [], False
        for end in [*cuts, len(whole)]:
            new, now_done, used = parse_progress(whole[offset:end])
            assert not (done and now_done), "done is said once"
            heard += new
            done = done or now_done
            offset += used
        assert heard == said
        assert done is ended
        assert offset == len(whole)

    @given(st.text())
    def test_garbage_is_skipped_and_never_raises(self, garbage: str) -> None:
        line = json.dumps({"text": "fine"}) + "\n"
        texts_found, _, used = parse_progress(garbage + "\n" + line)
        assert texts_found[-1] == "fine"
        assert used == len(garbage) + 1 + len(line)

    @given(texts)
    def test_characters_are_bytes(self, said: list[str]) -> None:
        """The follower counts characters and skips bytes: both must be the same."""
        for text in said:
            assert json.dumps({"text": text}).isascii()

    def test_writer_and_reader_agree(self, tmp_path: Path) -> None:
        path = tmp_path / "p"
        writer = ProgressWriter(str(path))
        writer.say("loading weights (3 s)")
        writer.say("ünïcode \u2028 line")
        writer.done()
        found = parse_progress(path.read_text(encoding="utf-8"))
        assert found == (["loading weights (3 s)", "ünïcode \u2028 line"], True, len(path.read_text(encoding="utf-8")))

    def test_progress_never_stops_the_work(self, tmp_path: Path) -> None:
        ProgressWriter(None).say("nobody listens")
        writer = ProgressWriter(str(tmp_path / "no" / "folder" / "p"))
        writer.say("lost")
        writer.done()
        assert list(tmp_path.iterdir()) == []


class TestLayout:
    def test_the_default_instance_lies_in_the_home_itself(self) -> None:
        where = layout("/srv/lh")
        assert (where.state, where.program, where.facts_name) == (Path("/srv/lh"), "longhaul-default", "longhaul")

    @given(
        st.lists(
            st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True).filter(lambda x: len(x) <= 40),
            min_size=2,
            max_size=4,
            unique=True,
        )
    )
    def test_endpoints_of_one_home_share_nothing_of_their_own(self, names: list[str]) -> None:
        made = [layout("/srv/lh", n) for n in names]
        for part in ("state", "current_spec", "previous_spec", "log", "results", "program", "facts_file"):
            assert len({str(getattr(x, part)) for x in made}) == len(names), part
        assert len({x.supervisor_socket for x in made}) == 1

    @pytest.mark.parametrize("name", ["", "Upper", "a_b", "-a", "a-", "a/b", "..", "a" * 41, "a\n"])
    def test_bad_instance_names(self, name: str) -> None:
        with pytest.raises(UserError, match="longhaul_instance"):
            layout("/srv/lh", name)

    def test_home_must_be_absolute_and_leave_room_for_the_socket(self) -> None:
        with pytest.raises(UserError, match="absolute"):
            layout("relative/home")
        longest = SOCKET_PATH_MAX - len("/supervisor/supervisor.sock")
        assert len(str(layout("/" + "x" * (longest - 1)).supervisor_socket)) == SOCKET_PATH_MAX
        with pytest.raises(UserError, match="shorter longhaul_home"):
            layout("/" + "x" * longest)

    def test_facts_go_to_the_systems_folder_only_for_roots_own_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert str(Layout(Path("/opt/longhaul")).facts_file) == "/etc/ansible/facts.d/longhaul.fact"
        assert str(Layout(Path("/srv/x")).facts_file) == "/srv/x/facts.d/longhaul.fact"
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert str(Layout(Path("/opt/longhaul")).facts_file) == "/opt/longhaul/facts.d/longhaul.fact"
