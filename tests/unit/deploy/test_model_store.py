"""The model store's comparison: what must be copied again, and what need not."""

from __future__ import annotations

from pathlib import Path

from ansible.plugins.loader import filter_loader
from longhaul.deploy.model_store import differing
from support.paths import ROOT


def test_what_differs_is_named(tmp_path: Path) -> None:
    filter_loader.add_directory(str(ROOT / "plugins" / "filter"))
    checksums = filter_loader.get("longhaul_checksums").j2_function
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    for name in ("config.json", "sub/tokenizer.json", "extra.txt"):
        (source / name).write_text(name)
    wanted = checksums(str(source))
    assert sorted(wanted) == ["config.json", "extra.txt", "sub/tokenizer.json"]
    assert differing(target, wanted) == sorted(wanted)
    source.rename(target)
    assert differing(target, wanted) == []
    (target / "config.json").write_text("changed")
    (target / "extra.txt").unlink()
    (target / "sub/tokenizer.json").chmod(0o600)  # the engine may run as another user
    assert differing(target, wanted) == sorted(wanted)
    (target / "notes.txt").write_text("somebody else's")
    assert "notes.txt" not in differing(target, wanted)
