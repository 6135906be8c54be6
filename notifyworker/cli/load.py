"""
Find the worker that `MODULE:ATTR` names, and say plainly what is in the way if it is not to be had.

Whatever goes wrong is a SettingsError: it is the user's own module, and a traceback through importlib would hide the
one line that matters.
"""

import difflib
import importlib
import inspect
import os
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from notifyworker import Worker
from notifyworker.errors import NotifyWorkerError, SettingsError

_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_PACKAGE = str(Path(__file__).parents[1])
_NOT_THE_USERS = (_PACKAGE, *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")), "<frozen")


def load_worker(reference: str) -> Worker:
    """Import `MODULE:ATTR[.ATTR]`; the current directory comes first. Raises SettingsError."""
    if not _REFERENCE.fullmatch(reference):
        message = f"{reference!r} is not of the form MODULE:ATTR"
        raise SettingsError(message, hint="for example app:worker, for `worker = Worker()` in app.py")
    name, _, path = reference.partition(":")
    found = _attribute(_module(name), path)
    worker = found if isinstance(found, Worker) else _made_by(found, reference)
    if not isinstance(worker, Worker):
        message = f"{reference} is no Worker: {_described(worker)}"
        raise SettingsError(message, hint="name a Worker, or a function without arguments that returns one")
    return worker


def _module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if _frames(error):
            raise _import_failed(name, error) from None
        message = f"there is no module {error.name or name}"
        hint = f"looked in {here} and in the installed packages"
        if name.endswith(".py"):
            hint = f"name the module without .py: {name.removesuffix('.py')}"
        raise SettingsError(message, hint=hint) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a module may raise anything
        raise _import_failed(name, error) from None


def _attribute(module: ModuleType, path: str) -> Any:
    found: Any = module
    for number, step in enumerate(path.split(".")):
        try:
            found = getattr(found, step)
        except AttributeError:
            where = ".".join([module.__name__, *path.split(".")[:number]])
            message = f"{where} has no attribute {step!r}"
            raise SettingsError(message, hint=_suggested(found, step)) from None
    return found


def _suggested(holder: Any, step: str) -> str | None:
    workers = [name for name, value in vars(holder).items() if isinstance(value, Worker)] if hasattr(holder, "__dict__") else []
    names = workers or difflib.get_close_matches(step, dir(holder), n=1)
    return f"did you mean {' or '.join(names)}?" if names else None


def _made_by(factory: Any, reference: str) -> Any:
    """Call what can be called without arguments; anything else is returned as it is."""
    if not callable(factory):
        return factory
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError):
        return factory
    try:
        made = factory()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        message = f"{reference}() failed"
        raise _failed(message, error) from None
    if inspect.iscoroutine(made):
        made.close()
    return made


def _described(value: Any) -> str:
    if inspect.iscoroutine(value):
        return "an async function, which can't be awaited here"
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}, which takes arguments"
    return f"a value of type {type(value).__qualname__}"


def _import_failed(name: str, error: BaseException) -> SettingsError:
    return _failed(f"importing {name} failed", error)


def _failed(what: str, error: BaseException) -> SettingsError:
    """One line: what failed, where in the user's own code, and how."""
    where = _where(error)
    told = str(error) if isinstance(error, NotifyWorkerError) else f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename:
        where, told = f"{_short(error.filename)}:{error.lineno}", f"{type(error).__name__}: {error.msg}"
    line = " ".join(told.split())
    return SettingsError(f"{what}{f' at {where}' if where else ''}: {line[:500]}")


def _where(error: BaseException) -> str | None:
    """Name the deepest line of the user's own; of a library's, if it has none."""
    frames = _frames(error)
    own = [at for at in frames if not at[0].f_code.co_filename.startswith(_NOT_THE_USERS)]
    if not frames:
        return None
    frame, line = (own or frames)[-1]
    return f"{_short(frame.f_code.co_filename)}:{line}"


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """List the frames below our own call of importlib: none if the module itself was not found."""
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename != __file__]
    return [at for at in frames if not at[0].f_code.co_filename.startswith(("<frozen", importlib.__file__))]


def _short(filename: str) -> str:
    relative = os.path.relpath(filename)
    return filename if relative.startswith("..") else relative
