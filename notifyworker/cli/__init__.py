"""
The command `notifyworker`: the only place that turns errors into exit codes.

What a command needs is imported when it runs, so that `--version` and `--help` are quick.
"""

import itertools
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from notifyworker.errors import InvalidRun, NotifyWorkerError, SettingsError, StartError
from notifyworker.mask import SECRETS, masked

DONE, FAILED, WRONG_USE, NOT_STARTED = 0, 1, 2, 3


def main(tokens: Sequence[str] | None = None) -> NoReturn:
    """Do what the command line says and exit."""
    tokens = _uncoloured(sys.argv[1:] if tokens is None else tokens)
    if secrets := _secrets_of(tokens):
        from notifyworker.cli.title import conceal

        conceal(secrets)
    try:
        code = _executed(tokens)
        sys.stdout.flush()
    except NotifyWorkerError as error:
        code = told(error)
    except BrokenPipeError:  # the reader of our output has left, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except KeyboardInterrupt:
        code = 130
    except Exception as error:  # noqa: BLE001 - a fault of ours
        code = _crashed(error)
    sys.exit(code)


def _crashed(error: Exception) -> int:
    """Tell where, and not what: the text of an error that nobody expected may quote a password or a payload."""
    from notifyworker.observe import outline

    print(outline(error), file=sys.stderr, end="")
    _tell("this is a fault of notifyworker; please report the lines above")
    return FAILED


def told(error: NotifyWorkerError) -> int:
    """Print an error of ours and return the contract's exit code for it."""
    _tell(str(error))
    if isinstance(error, SettingsError | InvalidRun):
        return WRONG_USE
    return NOT_STARTED if isinstance(error, StartError) else FAILED


def version() -> str:
    """Return the version that is installed."""
    from importlib import metadata

    return metadata.version("notifyworker")


def _uncoloured(tokens: Sequence[str]) -> list[str]:
    """Take `--no-color` out, wherever it stands, and do as NO_COLOR does."""
    options = list(itertools.takewhile(lambda token: token != "--", tokens))  # noqa: S105 - an end of options
    if "--no-color" not in options:
        return list(tokens)
    os.environ["NO_COLOR"] = "1"
    return [token for token in options if token != "--no-color"] + list(tokens[len(options) :])  # noqa: S105


def _secrets_of(tokens: Sequence[str]) -> list[str]:
    """List what of a command line nobody else may read: passwords in DSNs, and the token."""
    secrets = [found["url"] or found["word"] for token in tokens for found in SECRETS.finditer(token)]
    secrets += [token.partition("=")[2] for token in tokens if token.startswith(("--token=", "--tokens="))]
    secrets += [after for token, after in itertools.pairwise(tokens) if token in {"--token", "--tokens"}]
    return [secret for secret in secrets if secret]


def _executed(tokens: Sequence[str]) -> int:
    if list(tokens) == ["--version"]:  # asked by scripts: not worth the import of a command line's library
        print(version())
        return DONE
    from cyclopts import CycloptsError

    from notifyworker.cli.app import make_app

    try:
        return make_app()(tokens) or DONE
    except CycloptsError as error:
        command = " ".join(["notifyworker", *(error.command_chain or ())])
        _tell(f"{' '.join(str(error).split())} See: {command} --help")
        return WRONG_USE


def _tell(text: str) -> None:
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in masked(text))
    print(f"error: {shown}", file=sys.stderr, flush=True)
