"""The service's settings, one table: flags, environment variables and the README are derived from it."""

import argparse
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


def _about(meaning: str, parse: Callable[[str], Any], *, metavar: str, unset: str = "") -> dict[str, Any]:
    """Describe a setting: ``parse`` raises `BadRequest`, ``unset`` says what an empty default means."""
    return {"meaning": meaning, "parse": parse, "metavar": metavar, "unset": unset, "choices": None}


def _one_of(choices: Sequence[str], meaning: str, *, metavar: str) -> dict[str, Any]:
    """Describe a setting that has one of a few values."""
    return {**_about(meaning, _choice(*choices), metavar=metavar), "choices": choices}


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


@dataclass(frozen=True, slots=True)
class Settings:
    """How the service runs. `resolve` reads flags and environment, `markdown_table` documents them."""

    host: str = field(default="127.0.0.1", metadata=_about("Address to listen on.", str, metavar="ADDRESS"))
    port: int = field(
        default=8000,
        metadata=_about("Port to listen on; 0 takes any free one.", _number(int, 0, 65535), metavar="PORT"),
    )
    index: Path | None = field(
        default=None,
        metadata=_about(
            "Index root to serve: the folder that `kgtrace build` wrote.", Path, metavar="ROOT", unset="required"
        ),
    )
    device: str = field(
        default="auto",
        metadata=_one_of(DEVICES, "Where test gradients are computed: `auto`, `cpu` or `cuda`.", metavar="DEVICE"),
    )
    search: str = field(
        default="faiss",
        metadata=_one_of(
            ENGINES, "What searches: `faiss`, with the files of the index, or `milvus`, a server.", metavar="ENGINE"
        ),
    )
    milvus_uri: str | None = field(
        default=None,
        metadata=_about(
            "Where that is: `http://HOST:PORT`, with `/DATABASE` behind it where it is not the default one.",
            str,
            metavar="URI",
            unset="required by `milvus`",
        ),
    )
    milvus_token: str | None = field(
        default=None,
        repr=False,
        metadata=_about(
            "`USER:PASSWORD` or API key for it. Prefer the variable, as for keys.", str, metavar="TOKEN", unset="none"
        ),
    )
    threads: int | None = field(
        default=None,
        metadata=_about(
            "CPU threads of a scan (`exact`, sums); a query computes on one.",
            _number(int, 1, 4096),
            metavar="N",
            unset="all that may be used",
        ),
    )
    queue_length: int = field(
        default=64,
        metadata=_about(
            "Requests that may wait for the computing thread; more get 429.", _number(int, 0, 100_000), metavar="N"
        ),
    )
    deadline: float = field(
        default=30.0,
        metadata=_about(
            "Seconds after which a request is answered 504.", _number(float, 0.001, 86_400), metavar="SECONDS"
        ),
    )
    body_limit: int = field(
        default=1_048_576,
        metadata=_about("Bytes of a request body; larger ones get 413.", _number(int, 1, 1 << 30), metavar="BYTES"),
    )
    read_key: str | None = field(
        default=None,
        repr=False,
        metadata=_about(
            "Key that requests under `/v1` must send, as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Flags are "
            "visible to other users of the machine: prefer the variable.",
            _key,
            metavar="KEY",
            unset="no key needed",
        ),
    )
    read_key_file: Path | None = field(
        default=None,
        metadata=_about("File that holds the read key, instead.", Path, metavar="FILE", unset="none"),
    )
    admin_key: str | None = field(
        default=None,
        repr=False,
        metadata=_about(
            "Key that requests under `/v1/admin` must send, in the same way; it opens everything else, too.",
            _key,
            metavar="KEY",
            unset="nobody may",
        ),
    )
    admin_key_file: Path | None = field(
        default=None,
        metadata=_about("File that holds the admin key, instead.", Path, metavar="FILE", unset="none"),
    )
    cors_origins: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "Origins whose pages may call the service from a browser, separated by commas; `*` for all.",
            _origins,
            metavar="ORIGINS",
            unset="none",
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_one_of(LOG_LEVELS, "`debug`, `info`, `warning` or `error`.", metavar="LEVEL"),
    )
    log_format: str = field(
        default="json",
        metadata=_one_of(
            LOG_FORMATS, "`json`: an object a line, one for each request; `text`: for people.", metavar="NAME"
        ),
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
