"""Hooks of MkDocs: what pages have from the code, and their links to files of the repository."""

import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

from kgtrace_server import Service, Settings, create_app
from kgtrace_server.cli import parser as cli
from kgtrace_server.settings import markdown_table
from tools import command_line, http_api, problems

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[1]

PAGES = {
    "store/FORMAT.md": "reference/format.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/README.md": "examples.md",
    "README.md": "index.md",
}
"""Pages that lie elsewhere in the repository, by where the site has them."""

MARK = "<!-- made from the code by `make docs` -->"

_LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")

_NAMED = re.compile(r"\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)\)")


def on_files(files: Files, config: "MkDocsConfig") -> Files:
    """Add the pages that lie elsewhere, and the files that pages link to."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(REPOSITORY / path)))
    for path in sorted(_linked(files)):
        files.append(File.generated(config, f"files/{path}", abs_src_path=str(REPOSITORY / path)))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: Files) -> str:
    """Put in what is made from the code, and let links to files of the repository lead to their copies in the site."""
    here = page.file.src_uri

    def replaced(link: re.Match[str]) -> str:
        target = _in_site(_in_repository(here, link[2]))
        return link[1] + (link[2] if target is None else posixpath.relpath(target, posixpath.dirname(here) or "."))

    def without_folders(link: re.Match[str]) -> str:
        return link[1] if (REPOSITORY / _in_repository(here, link[2])).is_dir() else link[0]

    text = markdown.replace(MARK, MADE[here]()) if here in MADE else markdown
    return _LINK.sub(replaced, _NAMED.sub(without_folders, text))


def _command_line() -> str:
    os.environ.pop("KGTRACE_INDEX", None)  # the default of a flag on the builder's machine is nobody else's
    return command_line.reference(cli.parser())


def _http() -> str:
    return http_api.reference(create_app(_nothing, Settings(index=Path())).openapi())


def _nothing(generation: str) -> Service:
    raise AssertionError("only the routes of the application are looked at")


def _linked(files: Files) -> set[str]:
    """Return the files of the repository outside ``docs`` that pages link to."""
    targets = {
        _in_repository(page.src_uri, link[2])
        for page in files.documentation_pages()
        for link in _LINK.finditer(page.content_string)
    }
    return {
        target
        for target in targets
        if not target.startswith("docs/") and target not in PAGES and (REPOSITORY / target).is_file()
    }


def _in_repository(page: str, link: str) -> str:
    """Return what a link of a page means, relative to the repository's root."""
    source = next((path for path, at in PAGES.items() if at == page), f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _in_site(path: str) -> str | None:
    """Return where the site has a file of the repository; None where it has none."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path}" if (REPOSITORY / path).is_file() else None


MADE = {
    "problems.md": problems.reference,
    "reference/command-line.md": _command_line,
    "reference/http.md": _http,
    "reference/settings.md": markdown_table,
}
"""What stands in the place of the mark, by page."""
