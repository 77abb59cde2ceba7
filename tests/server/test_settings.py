"""Where settings come from, and that the README tells."""

import argparse
from dataclasses import fields
from pathlib import Path

import pytest

from kgtrace_server.settings import Settings, add_flags, flag, markdown_table, variable
from kgtrace_store.errors import BadRequest

README = Path(__file__).parents[2] / "README.md"
MARKER = "<!-- settings -->"

EXAMPLES = {
    "host": "0.0.0.0",
    "port": "9000",
    "index": "/srv/index",
    "device": "cpu",
    "search": "MILVUS",
    "milvus_uri": "http://localhost:19530",
    "milvus_token": "root:Milvus",
    "threads": "3",
    "workers": "2",
    "queue_length": "0",
    "deadline": "2.5",
    "body_limit": "100",
    "read_key": "s3cret",
    "read_key_file": "FILE",
    "admin_key": "s3cret",
    "admin_key_file": "FILE",
    "cors_origins": "https://a.example, https://b.example/",
    "frame_ancestors": "https://wiki.example, https://*.example:8443",
    "entity_url": "https://www.wikidata.org/wiki/{label}",
    "log_level": "DEBUG",
    "log_format": "TEXT",
}
PARSED = {
    "host": "0.0.0.0",
    "port": 9000,
    "index": Path("/srv/index"),
    "device": "cpu",
    "search": "milvus",
    "milvus_uri": "http://localhost:19530",
    "milvus_token": "root:Milvus",
    "threads": 3,
    "workers": 2,
    "queue_length": 0,
    "deadline": 2.5,
    "body_limit": 100,
    "read_key": "s3cret",
    "read_key_file": Path("FILE"),
    "admin_key": "s3cret",
    "admin_key_file": Path("FILE"),
    "cors_origins": ("https://a.example", "https://b.example"),
    "frame_ancestors": ("https://wiki.example", "https://*.example:8443"),
    "entity_url": "https://www.wikidata.org/wiki/{label}",
    "log_level": "debug",
    "log_format": "text",
}


def flags(*arguments: str) -> dict[str, object]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser)
    return vars(parser.parse_args(arguments))


@pytest.mark.parametrize("setting", fields(Settings), ids=lambda s: s.name)
def test_every_setting_can_be_given_as_flag_and_as_variable(
    setting: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways lead to the same value, which is not the default."""
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("s3cret\n")
    name = setting.name
    needed = {"KGTRACE_MILVUS_URI": EXAMPLES["milvus_uri"]} if name == "search" else {}
    by_flag = Settings.resolve(flags(flag(setting), EXAMPLES[name]), needed)
    by_variable = Settings.resolve(flags(), {variable(setting): EXAMPLES[name], **needed})
    assert getattr(by_flag, name) == getattr(by_variable, name) == PARSED[name]
    assert getattr(Settings(), name) != PARSED[name]


def test_flags_win_over_variables_and_variables_over_defaults() -> None:
    """The order of precedence is flag, environment, default; an empty variable counts as absent."""
    environment = {"KGTRACE_PORT": "9000", "KGTRACE_DEADLINE": "5", "KGTRACE_READ_KEY": ""}
    settings = Settings.resolve(flags("--port", "0"), environment)
    assert (settings.port, settings.deadline, settings.read_key) == (0, 5.0, None)
    assert settings.queue_length == Settings().queue_length


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "70000"),
        ("PORT", "http"),
        ("THREADS", "0"),
        ("DEADLINE", "nan"),
        ("DEADLINE", "inf"),
        ("DEADLINE", "0"),
        ("DEVICE", "tpu"),
        ("READ_KEY", "two words"),
        ("LOG_LEVEL", "loud"),
        ("BODY_LIMIT", "-1"),
        ("SEARCH", "elastic"),
        ("FRAME_ANCESTORS", "*; script-src *"),
        ("ENTITY_URL", "javascript:alert('{label}')"),
        ("ENTITY_URL", "https://www.wikidata.org/wiki/"),
    ],
)
def test_an_unusable_variable_is_named(name: str, text: str) -> None:
    """The message names the variable and its value."""
    with pytest.raises(BadRequest, match=rf"KGTRACE_{name}: ") as raised:
        Settings.resolve({}, {f"KGTRACE_{name}": text})
    assert name == "READ_KEY" or repr(text) in str(raised.value)


def test_an_unusable_flag_is_a_wrong_call() -> None:
    """The flag's parser says what it takes."""
    with pytest.raises(argparse.ArgumentError, match="from 0 to 65535"):
        flags("--port", "http")


@pytest.mark.parametrize("role", ["read", "admin"])
def test_keys_can_come_from_files(tmp_path: Path, role: str) -> None:
    """The file's only line is the key; one that cannot be one is refused, and so is a second source."""
    path = tmp_path / "key"
    path.write_text("s3cret\n")
    environment = {f"KGTRACE_{role.upper()}_KEY_FILE": str(path)}
    assert getattr(Settings.resolve({}, environment), f"{role}_key") == "s3cret"
    with pytest.raises(BadRequest, match=f"both a {role} key and a file of it"):
        Settings.resolve({f"{role}_key": "other"}, environment)
    for content in (b"", b"two words", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(BadRequest, match=str(path)):
            Settings.resolve({}, environment)
    path.unlink()
    with pytest.raises(BadRequest, match="No such file"):
        Settings.resolve({}, environment)


def test_keys_are_not_printed() -> None:
    """A log line of the settings does not give the key away."""
    assert "s3cret" not in repr(Settings(read_key="s3cret", admin_key="s3cret"))


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.8.9.1", True), ("0.0.0.0", False), ("::", False)],
)
def test_local_addresses_are_recognised(host: str, local: bool) -> None:
    """Only loopback addresses are out of other machines' reach."""
    assert Settings(host=host).local is local


def test_the_table_has_a_row_for_every_setting() -> None:
    """Each row holds flag, variable, default and meaning."""
    rows = markdown_table().splitlines()[2:]
    assert len(rows) == len(fields(Settings))
    for row, setting in zip(rows, fields(Settings), strict=True):
        assert row.startswith(f"| `{flag(setting)}` | `{variable(setting)}` | ")
        assert row.count(" | ") == 3


def test_the_readme_holds_exactly_this_table() -> None:
    """What stands between the two markers in the README is what the code does."""
    _, shown, _ = README.read_text().split(MARKER)
    assert shown.strip() == markdown_table()
