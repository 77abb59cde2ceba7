"""The dashboard: one page at ``/`` and the files it is made of, served from this machine.

The page calls the public API and nothing else. Its files lie below ``/dashboard/VERSION/``, where the version is a
digest of all of them: they may be cached for ever, and a page never mixes files of two releases. They import one
another by relative addresses, so that the page works behind a proxy that puts a folder before it, too.
"""

import gzip
import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable
from posixpath import normpath

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from kgtrace_store.errors import KgtraceError

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors {parents}; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing inline, nothing from elsewhere, and no text, such as a label, that becomes markup.

A blob is a picture that the page itself has drawn, on its way to a PNG. `parents` may show the page in a frame.
"""

D3 = "vendor/d3.v7.min.def.js"
"""The chart library, which the build puts there: see ``hatch_build.py``."""

_PAGE = "index.html"

_FIRST = ("static/main.js", "static/views/explain.js")
"""The modules that the first view needs, beside those that they import."""
_IMPORTED = re.compile(r"""^(?:import|}).*"(\.[^"]+)";$""", re.MULTILINE)
"""What a module imports at once."""

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Of the files that are served; others are not."""

_FOR_EVER = "public, max-age=31536000, immutable"


class NoChartLibrary(KgtraceError):
    """The package was not installed, or not whole."""


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    zipped: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class _Dashboard:
    version: str
    page: str
    """With the version in its addresses, and a place for the entities' address."""
    files: dict[str, _File]
    """By path below the version's folder."""


def dashboard(frame_ancestors: Collection[str] = (), entity_url: str | None = None) -> APIRouter:
    """Return the routes of the page and of the files that it loads; see the settings of these names."""
    router = APIRouter(include_in_schema=False)
    policy = POLICY.format(parents=" ".join(frame_ancestors) or "'none'")

    @router.get("/")
    async def page(request: Request) -> Response:
        shown = _page(_built().page, entity_url or "")
        tag = f'W/"{hashlib.sha256(shown.content).hexdigest()[:12]}"'
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache", "ETag": tag}
        if tag in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=headers)
        return _sent(shown, request, headers)

    @router.get("/dashboard/{version}/{path:path}")
    async def file(version: str, path: str, request: Request) -> Response:
        built = _built()
        served = built.files.get(path)
        if served is None or version != built.version:
            raise HTTPException(404)
        return _sent(served, request, {"Cache-Control": _FOR_EVER})

    return router


def _sent(file: _File, request: Request, headers: dict[str, str]) -> Response:
    headers = {**headers, "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        return Response(file.zipped, media_type=file.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(file.content, media_type=file.media_type, headers=headers)


@cache
def _built() -> _Dashboard:
    """Read all files. Raises `NoChartLibrary`."""
    content = dict(_read(files(__package__)))
    if D3 not in content:
        raise NoChartLibrary(f"{files(__package__) / D3} is missing: install the package again (pip install -e .)")
    digest = hashlib.sha256()
    for path in sorted(content):
        digest.update(f"{path}\n{len(content[path])}\n".encode() + content[path])
    version = digest.hexdigest()[:12]
    modules = "\n".join(f'<link rel="modulepreload" href="dashboard/VERSION/{path}">' for path in _modules(content))
    page = content.pop(f"static/{_PAGE}").decode().replace("<!-- modules -->", modules).replace("VERSION", version)
    return _Dashboard(version, page, {path: _file(path, data) for path, data in content.items()})


@cache
def _page(page: str, entity_url: str) -> _File:
    return _file(_PAGE, page.replace("ENTITY_URL", escape(entity_url)).encode())


def _modules(content: Mapping[str, bytes]) -> list[str]:
    """Return the modules of the first view, which are loaded at once, not one after the other as imports name them."""
    found, left = set[str](), [*_FIRST]
    while left:
        if (path := left.pop()) not in found:
            found.add(path)
            left += [normpath(f"{path}/../{name}") for name in _IMPORTED.findall(content[path].decode())]
    return sorted(found)


def _read(folder: Traversable, prefix: str = "") -> list[tuple[str, bytes]]:
    """Return path and content of every file below a folder that is served."""
    entries = []
    for entry in folder.iterdir():
        path = prefix + entry.name
        if entry.is_dir():
            entries += _read(entry, path + "/")
        elif _suffix(path) in _MEDIA_TYPES:
            entries.append((path, entry.read_bytes()))
    return entries


def _file(path: str, content: bytes) -> _File:
    return _File(content, gzip.compress(content, mtime=0), _MEDIA_TYPES[_suffix(path)])


def _suffix(path: str) -> str:
    return path[path.rfind(".") :]
