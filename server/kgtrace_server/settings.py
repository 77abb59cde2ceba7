"""The service's settings, one table: flags, environment variables and the README are derived from it."""

# ruff: noqa: RUF009 (each function call in the dataclass defines a field)

import argparse
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from kgtrace_store.errors import BadRequest

ENVIRONMENT_PREFIX = "KGTRACE_"
"""Before a setting's name in upper case."""

DEVICES = ("auto", "cpu", "cuda")
"""Where test gradients are computed; ``auto`` takes a GPU when there is one."""

ENGINES = ("faiss", "milvus")
"""What searches: FAISS in this process, or a Milvus server or cluster."""

ENGINE_SETTINGS = ("search", "milvus_uri", "milvus_token")
"""Names of the settings that say so: arguments of every verb that searches, or prepares a search."""

LOG_LEVELS = ("debug", "info", "warning", "error")

LOG_FORMATS = ("json", "text")

_PARENT = re.compile(r"https?://(\*\.)?[A-Za-z0-9.-]+(:\d+)?")
"""A source of CSP's ``frame-ancestors``."""


def _setting(
    default: Any,
    meaning: str,
    parse: Callable[[str], Any],
    metavar: str,
    *,
    unset: str = "",
    choices: Sequence[str] | None = None,
    secret: bool = False,
) -> Any:
    """Define a setting: ``parse`` raises `BadRequest`, ``unset`` describes an empty default."""
    about = {"meaning": meaning, "parse": parse, "metavar": metavar, "unset": unset, "choices": choices}
    return field(default=default, repr=not secret, metadata=about)


def _one_of(choices: Sequence[str], default: str, meaning: str, metavar: str) -> Any:
    """Define a setting that has one of a few values."""
    return _setting(default, meaning, _choice(*choices), metavar, choices=choices)


def _number(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], float]:
    noun = "an integer" if kind is int else "a number"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(least) - 1
        if not least <= value <= most:
            raise BadRequest(f"{text!r} is not {noun} from {least} to {most}")
        return value

    return parse


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise BadRequest(f"{text!r} is not one of {', '.join(choices)}")
        return text.lower()

    return parse


def _key(text: str) -> str:
    if not text or not all("!" <= character <= "~" for character in text):
        raise BadRequest("a key is one or more visible ASCII characters, without spaces")
    return text


def _key_in(path: Path) -> str:
    try:
        return _key(path.read_text().strip())
    except (OSError, UnicodeDecodeError) as e:
        raise BadRequest(f"cannot read a key from {path}: {e}") from e
    except BadRequest as e:
        raise BadRequest(f"{path}: {e}") from e


def _origins(text: str) -> tuple[str, ...]:
    return tuple(origin for part in text.split(",") if (origin := part.strip().rstrip("/")))


def _parents(text: str) -> tuple[str, ...]:
    parents = _origins(text)
    if wrong := [parent for parent in parents if not _PARENT.fullmatch(parent)]:
        raise BadRequest(f"{wrong[0]!r} is no origin such as https://wiki.example or https://*.example:8443")
    return parents


def _url_of_label(text: str) -> str:
    if not re.fullmatch(r"https?://\S*", text) or "{label}" not in text:
        raise BadRequest(f"{text!r} is no address that begins with http:// or https:// and has {{label}} in it")
    return text


@dataclass(frozen=True, slots=True)
class Settings:
    """How the service runs. `resolve` reads flags and environment, `markdown_table` documents them."""

    host: str = _setting("127.0.0.1", "Address to listen on.", str, "ADDRESS")
    port: int = _setting(8000, "Port to listen on; 0 takes any free one.", _number(int, 0, 65535), "PORT")
    index: Path | None = _setting(
        None, "Index root to serve: the folder that `kgtrace build` wrote.", Path, "ROOT", unset="required"
    )
    device: str = _one_of(DEVICES, "auto", "Where test gradients are computed: `auto`, `cpu` or `cuda`.", "DEVICE")
    search: str = _one_of(
        ENGINES, "faiss", "What searches: `faiss`, with the files of the index, or `milvus`, a server.", "ENGINE"
    )
    milvus_uri: str | None = _setting(
        None,
        "Where that is: `http://HOST:PORT`, with `/DATABASE` behind it where it is not the default one.",
        str,
        "URI",
        unset="required by `milvus`",
    )
    milvus_token: str | None = _setting(
        None,
        "`USER:PASSWORD` or API key for it. Prefer the variable, as for keys.",
        str,
        "TOKEN",
        unset="none",
        secret=True,
    )
    threads: int | None = _setting(
        None,
        "CPU threads of a scan (`exact`, sums) and of a batch; a query computes on one.",
        _number(int, 1, 4096),
        "N",
        unset="all that may be used",
    )
    workers: int = _setting(
        1,
        "Processes that answer on the port. They share the mapped files of the index, and divide the threads.",
        _number(int, 1, 256),
        "N",
    )
    queue_length: int = _setting(
        64, "Requests that may wait for the computing thread of a process; more get 429.", _number(int, 0, 100_000), "N"
    )
    deadline: float = _setting(
        30.0, "Seconds after which a request is answered 504.", _number(float, 0.001, 86_400), "SECONDS"
    )
    body_limit: int = _setting(
        1_048_576, "Bytes of a request body; larger ones get 413.", _number(int, 1, 1 << 30), "BYTES"
    )
    read_key: str | None = _setting(
        None,
        "Key that requests under `/v1` must send, as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Flags are "
        "visible to other users of the machine: prefer the variable.",
        _key,
        "KEY",
        unset="no key needed",
        secret=True,
    )
    read_key_file: Path | None = _setting(None, "File that holds the read key, instead.", Path, "FILE", unset="none")
    admin_key: str | None = _setting(
        None,
        "Key that requests under `/v1/admin` must send, in the same way; it opens everything else, too.",
        _key,
        "KEY",
        unset="nobody may",
        secret=True,
    )
    admin_key_file: Path | None = _setting(None, "File that holds the admin key, instead.", Path, "FILE", unset="none")
    cors_origins: tuple[str, ...] = _setting(
        (),
        "Origins whose pages may call the service from a browser, separated by commas; `*` for all.",
        _origins,
        "ORIGINS",
        unset="none",
    )
    frame_ancestors: tuple[str, ...] = _setting(
        (),
        "Origins whose pages may show the dashboard in a frame, separated by commas.",
        _parents,
        "ORIGINS",
        unset="none",
    )
    entity_url: str | None = _setting(
        None,
        "Where the dashboard's pages of entities link to, such as `https://www.wikidata.org/wiki/{label}`.",
        _url_of_label,
        "URL",
        unset="none",
    )
    log_level: str = _one_of(LOG_LEVELS, "info", "`debug`, `info`, `warning` or `error`.", "LEVEL")
    log_format: str = _one_of(
        LOG_FORMATS, "json", "`json`: an object a line, one for each request; `text`: for people.", "NAME"
    )

    @classmethod
    def resolve(cls, flags: Mapping[str, Any], environment: Mapping[str, str]) -> "Settings":
        """Take each setting from the flags, else from the environment, else its default; read files of keys.

        ``flags`` holds parsed values, None where a flag was not given; other keys are passed over. An empty
        variable counts as absent. Raises `BadRequest` naming the variable or file that cannot be read.
        """
        values: dict[str, Any] = {}
        for setting in fields(cls):
            text = environment.get(variable(setting), "")
            if flags.get(setting.name) is not None:
                values[setting.name] = flags[setting.name]
            elif text:
                try:
                    values[setting.name] = setting.metadata["parse"](text)
                except BadRequest as e:
                    raise BadRequest(f"{variable(setting)}: {e}") from e
        for name in ("read_key", "admin_key"):
            path = values.get(f"{name}_file")
            if path is not None:
                if name in values:
                    raise BadRequest(f"both a {name.replace('_', ' ')} and a file of it ({path}) are given: give one")
                values[name] = _key_in(path)
        if values.get("search") == "milvus" and "milvus_uri" not in values:
            raise BadRequest("search by milvus needs its address: give --milvus-uri URI or set KGTRACE_MILVUS_URI")
        return cls(**values)

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the service."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def flag(setting: Field[Any]) -> str:
    """Return a setting's flag: ``--queue-length``."""
    return "--" + setting.name.replace("_", "-")


def variable(setting: Field[Any]) -> str:
    """Return a setting's environment variable: ``KGTRACE_QUEUE_LENGTH``."""
    return ENVIRONMENT_PREFIX + setting.name.upper()


def add_flags(parser: "argparse._ActionsContainer", names: Collection[str] | None = None) -> None:
    """Give a parser one flag for each setting, or for some; a flag that is not given leaves None."""
    for setting in fields(Settings):
        if names is not None and setting.name not in names:
            continue
        meaning = f"{setting.metadata['meaning'].rstrip('.')} ({variable(setting)}; default: {_default(setting)})"
        parser.add_argument(
            flag(setting),
            dest=setting.name,
            metavar=setting.metadata["metavar"],
            type=_for_argparse(setting.metadata["parse"]),
            choices=setting.metadata["choices"],
            help=meaning.replace("`", "").replace("%", "%%"),
        )


def markdown_table() -> str:
    """Return the table of settings as the README shows it."""
    lines = ["| flag | environment | default | meaning |", "|---|---|---|---|"]
    for setting in fields(Settings):
        cells = (f"`{flag(setting)}`", f"`{variable(setting)}`", _default(setting), setting.metadata["meaning"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _default(setting: Field[Any]) -> str:
    return str(setting.metadata["unset"] or setting.default)


def _for_argparse(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except BadRequest as e:
            raise argparse.ArgumentTypeError(str(e)) from e

    return parsed
