"""Documentation: generated pages are up to date, links lead somewhere, the site builds."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """docs/build.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["operators", "recipes", "cli"])
def test_generated_page_is_up_to_date(build: ModuleType, page: str) -> None:
    assert (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") == build.GENERATED[page](), "run `make docs`"


def test_a_changed_page_is_noticed(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.GENERATED, "cli", lambda: "other\n")
    assert "cli" in build.stale()


def test_every_option_is_explained(build: ModuleType) -> None:
    unexplained = [line for line in build.command_line().splitlines() if re.match(r"\| `.*\|\s*\|$", line)]
    assert not unexplained


def test_every_lowered_operator_is_listed(build: ModuleType) -> None:
    assert "**none**" not in build.operators()


def test_every_page_is_in_the_navigation(build: ModuleType) -> None:
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index"} == set(build.PAGES)


@pytest.mark.parametrize("path", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", *sorted(
    f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")
)])  # fmt: skip
def test_links_lead_somewhere(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    missing = [link for link in links if not ((ROOT / path).parent / link).exists()]
    assert not missing


def test_site_renders_tables_and_rewrites_links(build: ModuleType) -> None:
    pytest.importorskip("markdown_it")
    page = build.render("index")
    assert "<table>" in page and 'href="quickstart.html"' in page and ".md" not in re.findall(r'href="([^"]*)"', page)
    assert 'id="common-options"' in build.render("cli")
    assert 'href="#common-options"' in build.render("cli")
