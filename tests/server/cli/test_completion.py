"""Completion, asked of the shells themselves."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kgtrace_server.cli import parser as cli
from kgtrace_server.cli.completion import actions, script
from kgtrace_server.cli.verbs.operate import SHELLS

PATIENCE = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to complete names of, with a script of each shell beside it."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "here" / "train.tsv").parent.mkdir()
    (folder / "here" / "train.tsv").touch()
    (folder / "here" / "training").mkdir()
    for shell in SHELLS:
        (folder / f"kgtrace.{shell}").write_text(script(cli.parser(), shell))
    (folder / "_kgtrace").symlink_to("kgtrace.zsh")  # where zsh looks for it
    return folder / "here"


BASH = """
source ../kgtrace.bash
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_shtab_kgtrace
printf '%s\\n' "${COMPREPLY[@]}"
"""

FISH = """
source ../kgtrace.fish
complete -C "$argv"
"""

ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PROMPT= RPROMPT=; fpath=(.. $fpath); autoload -U compinit; compinit -u -D'
zpty -w shell 'show() { print -r -- "<$BUFFER>" }; zle -N show; bindkey "^X" show; print ready'
zpty -r shell seen $'*\nready*'
zpty -w -n shell "$1"$'\t\x18'
zpty -r shell seen $'*<*>*'
print -r -- "${${seen##*<}%%>*}"
"""
"""Types into an interactive shell, presses the tabulator, and prints the line."""


def ask(folder: Path, *command: str) -> list[str]:
    """Run a shell, and return what it prints."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=PATIENCE)
    return done.stdout.splitlines()


def offers(shell: str, folder: Path, *words: str) -> set[str]:
    """What a shell offers for the last of some words."""
    if shell == "bash":
        lines = ask(folder, "bash", "--norc", "-c", BASH, "bash", *words)
    else:
        lines = ask(folder, "fish", "--no-config", "-c", FISH, " ".join(words))
    return {line.split("\t")[0].removesuffix("/") for line in lines if line}


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("kgtrace", "pu"), {"publish", "push"}),
        (("kgtrace", "build", "--proj"), {"--projection"}),
        (("kgtrace", "build", "--projection", "ga"), {"gaussian"}),
        (("kgtrace", "build", "--loss", "bce-"), {"bce-1vsall", "bce-kvsall"}),
        (("kgtrace", "serve", "--log-level", "wa"), {"warning"}),
        (("kgtrace", "build", "--train", "train"), {"train.tsv", "training"}),
        (("kgtrace", "query", "--index", "train"), {"training"}),
        (("kgtrace", "completion", "f"), {"fish"}),
    ],
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
def test_a_shell_completes(shell: str, folder: Path, words: tuple[str, ...], offered: set[str]) -> None:
    """Verbs, flags, choices, files, folders."""
    assert offers(shell, folder, *words) == offered


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("kgtrace publ", "kgtrace publish "),
        ("kgtrace build --proje", "kgtrace build --projection "),
        ("kgtrace build --projection gau", "kgtrace build --projection gaussian "),
        ("kgtrace serve --log-level warn", "kgtrace serve --log-level warning "),
        ("kgtrace build --train train.t", "kgtrace build --train train.tsv "),
        ("kgtrace query --index trai", "kgtrace query --index training/"),
    ],
)
def test_zsh_completes(folder: Path, typed: str, completed: str) -> None:
    """The same, at an interactive prompt."""
    assert ask(folder, "zsh", "-f", "-c", ZSH, "zsh", typed) == [completed]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_reads_it(shell: str, folder: Path) -> None:
    """Its syntax is right."""
    assert ask(folder, shell, "-n", f"../kgtrace.{shell}") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_verb_prints_it(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What a shell is to source, and nothing else."""
    assert cli.main(["completion", shell]) == 0
    assert capsys.readouterr().out == script(cli.parser(), shell) + "\n"


def test_every_path_is_completed() -> None:
    """No argument that is read as a path is left to guesswork."""
    command_line = cli.parser()
    script(command_line, "bash")
    paths = [action for action in actions(command_line) if action.type is Path]
    assert paths
    assert [action.metavar for action in paths if not hasattr(action, "complete")] == []
