"""What people read is true: README's length and tables, links in every page, generated pages as the roles are."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from support.paths import ROOT
from unit.test_layout import ROOMS

README = (ROOT / "README.md").read_text(encoding="utf-8")
# A report.md is rendered: the sample's, and those that a reader made of the evidence.
WRITTEN = sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "report.md")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *WRITTEN]
ROLES = sorted(p.name for p in (ROOT / "roles").iterdir() if (p / "defaults" / "main.yml").exists())
PLAYBOOKS = sorted(p.name for p in (ROOT / "playbooks").glob("*.yml"))
SCRIPT = ROOT / "scripts" / "dev" / "variables-docs.py"
# [text](target) and ![text](target); a target of another site or of the same page is not a file.
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Paths that pages name in code: `docs/...`, `scripts/...` and so on. With a placeholder (*, <, {, ...) they name no one file.
NAMED = re.compile(
    r"`((?:docs|scripts|playbooks|roles|vars|inventory|benchmarks|tests|library|plugins|module_utils)/[\w./=,-]+)`"
)


@cache
def declared() -> frozenset[str]:
    """Every variable of every role."""
    files = [ROOT / "roles" / role / "defaults" / "main.yml" for role in ROLES]
    return frozenset(name for file in files for name in yaml.safe_load(file.read_text(encoding="utf-8")))


def prose(page: Path) -> str:
    """The page without fenced code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def test_the_readme_can_be_read_to_the_end() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_points_at_a_file(page: Path) -> None:
    targets = [t.split("#")[0] for t in LINK.findall(prose(page)) if not re.match(r"[a-z]+:|#", t)]
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    """CHANGELOG also tells of files that are gone."""
    assert [n for n in NAMED.findall(prose(page)) if not (ROOT / n.rstrip("/.")).exists()] == []


def test_every_playbook_is_in_the_readmes_table() -> None:
    rows = re.findall(r"^\| `(\S+)` \|", README, flags=re.M)
    assert sorted(rows) == sorted(["deploy.yml", *(f"playbooks/{name}" for name in PLAYBOOKS)])


def test_the_readme_sets_fifteen_variables_and_all_are_declared() -> None:
    block = re.search(r"fifteen variables.*?^```yaml\n(.*?)^```", README, flags=re.S | re.M)
    assert block is not None
    chosen = yaml.safe_load(block[1])
    assert len(chosen) == 15
    assert set(chosen) <= declared()


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_variable_of_a_role_that_a_page_names_is_declared(page: Path) -> None:
    named = re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)[`:=]", page.read_text(encoding="utf-8"))
    assert [n for n in named if n.startswith(tuple(f"{role}_" for role in ROLES)) and n not in declared()] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or not page.is_file():
            continue
        reached.add(page)
        if page.suffix == ".md":
            waiting += [
                (page.parent / t.split("#")[0]).resolve() for t in LINK.findall(prose(page)) if not re.match(r"[a-z]+:|#", t)
            ]
    assert [page for page in PAGES if page not in reached] == []


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)


@cache
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("variables_docs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_list_the_variables_as_they_are() -> None:
    done = run("--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("role", ROLES)
def test_every_role_has_a_page_that_lists_every_variable_and_is_linked(role: str) -> None:
    page = (ROOT / "docs" / "variables" / f"{role}.md").read_text(encoding="utf-8")
    defaults = yaml.safe_load((ROOT / "roles" / role / "defaults/main.yml").read_text(encoding="utf-8"))
    assert re.findall(r"^\| `(\w+)` \|", page, flags=re.M) == list(defaults)
    assert f"]({role}.md)" in (ROOT / "docs/variables/README.md").read_text(encoding="utf-8")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of one role."""
    role = tmp_path / "roles" / "one"
    (role / "meta").mkdir(parents=True)
    (role / "defaults").mkdir()
    options = {
        "one_a": {"description": "How many.", "type": "int"},
        "one_b": {"description": "The beginning\nand the end.", "choices": ["x", "y"]},
    }
    specs = {
        "main": {"short_description": "Do one thing", "options": options},
        "undo": {"short_description": "Undo it", "options": options},
    }
    (role / "meta/argument_specs.yml").write_text(yaml.safe_dump({"argument_specs": specs}), encoding="utf-8")
    text = "# --- Title ---\n# How many.\none_a: 1\n# The beginning and the end.\none_b: 'a|b'\n"
    (role / "defaults/main.yml").write_text(text, encoding="utf-8")
    return tmp_path


def test_check_sees_a_missing_a_changed_and_a_left_over_page_and_write_mends_them(small: Path) -> None:
    words = ("--root", str(small))
    folder = small / "docs" / "variables"
    missing = run("--check", *words)
    assert (missing.returncode, "one.md" in missing.stderr) == (1, True)
    assert not folder.exists(), "a check writes nothing"
    assert run("--write", *words).returncode == 0
    assert run("--check", *words).returncode == 0
    (folder / "gone.md").write_text("of a role that was deleted", encoding="utf-8")
    (folder / "one.md").write_text("old", encoding="utf-8")
    (folder / "README.md").write_text("by hand", encoding="utf-8")
    changed = run("--check", *words)
    assert (changed.returncode, "gone.md, one.md" in changed.stderr) == (1, True)
    assert run("--write", *words).returncode == 0
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "one.md"]
    assert (folder / "README.md").read_text(encoding="utf-8") == "by hand"


def test_a_page_holds_descriptions_choices_and_entry_points(small: Path) -> None:
    page = script().role_page("one", small)
    assert "| `one_a` | int | `1` | How many. |" in page
    assert "| `one_b` | str | `a\\|b` | The beginning and the end. One of: x, y. |" in page
    assert "Entry point `undo`: Undo it. It takes the same variables." in page


def test_a_new_variable_of_a_real_role_makes_its_page_stale(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "roles" / "report", tmp_path / "roles" / "report")
    defaults = tmp_path / "roles/report/defaults/main.yml"
    specs = tmp_path / "roles/report/meta/argument_specs.yml"
    folder = tmp_path / "docs/variables"
    assert run("--write", "--root", str(tmp_path)).returncode == 0
    defaults.write_text(defaults.read_text(encoding="utf-8") + "# New.\nreport_new: true\n", encoding="utf-8")
    told = yaml.safe_load(specs.read_text(encoding="utf-8"))
    told["argument_specs"]["main"]["options"]["report_new"] = {"type": "bool", "description": "New."}
    specs.write_text(yaml.safe_dump(told), encoding="utf-8")
    assert run("--check", "--root", str(tmp_path)).returncode == 1
    assert run("--write", "--root", str(tmp_path)).returncode == 0
    assert "| `report_new` | bool | `true` | New. |" in (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("role", ROLES)
def test_cells_cannot_break_the_table(role: str) -> None:
    for row in script().role_page(role).splitlines():
        if row.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", row)) == 5, row


def test_every_test_that_contributing_cites_is_there_and_every_way_to_add_cites_one() -> None:
    text = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    cited = re.findall(r"`(tests/[\w/]+\.py)::(?:\w+::)?(\w+)`", text)
    assert [name for file, name in cited if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")] == []
    rows = [row for row in text.splitlines() if re.match(r"\| an? ", row)]
    assert len(rows) == len(cited) == 8


def test_the_page_on_the_architecture_names_every_room_in_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)/`", page, flags=re.M)
    assert told == [room for room in ROOMS if room and (ROOT / "module_utils" / "longhaul" / room).is_dir()]


def test_every_code_of_a_reason_is_explained() -> None:
    room = ROOT / "module_utils" / "longhaul" / "validate"
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(room.glob("*.py")))
    given = set(re.findall(r'(?:_inconclusive|_invalid|_fail)\(\s*"([a-z_]+)"', source))
    given |= set(re.findall(r'(?:Verdict\.[A-Z]+, |read_end\()"([a-z_]+)"', source))
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert len(given) > 15
    assert set(re.findall(r"^\| `([a-z_]+)` \| [A-Z]+ \|", page, flags=re.M)) == given
