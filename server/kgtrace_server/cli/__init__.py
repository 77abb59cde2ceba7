"""The command line: arguments, verbs, and answers as text and files."""

from kgtrace_server.cli.parser import main as main
