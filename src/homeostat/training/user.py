"""A task or a model from the user's own code: "package.module:function", imported, called, and checked.

What goes wrong in the user's code is shown as the user's own traceback, short: the lines of that code and the error.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from homeostat.errors import HomeostatError, InvalidValue, invalid_type, unknown
from homeostat.training.task import Task
from homeostat.usercode import is_users


def user_task(spec: str, *, seed: int = 0) -> Task:
    """The Task that the function named by `spec` returns.

    The module is looked for in the current folder first, then among what is installed. The function is called without
    arguments, or with `seed=` if it has a parameter of that name.

    Raises: HomeostatError with the user's traceback if importing or calling fails; InvalidValue for a function that the
        module does not have; InvalidType if the function returns something other than a Task.
    """
    task = returned(spec, seed=seed)
    if not isinstance(task, Task):
        raise invalid_type("load_task", spec, "return a homeostat Task", task, "End it with return hs.Task(...).")
    function_name = spec.partition(":")[2]
    return task.loaded_as(function_name if task.name == "task" else task.name, seed)


def user_model(spec: str) -> tuple[nn.Module, Any]:
    """The model, and the sample it can be called with, that the function named by `spec` returns.

    Raises: as `user_task`; InvalidType if the function returns something other than a module and a sample.
    """
    pair = returned(spec)
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], nn.Module)):
        cure = "End it with return model, sample: a module, and a batch that it can be called with."
        raise invalid_type("fold", spec, "return a model and a sample", pair, cure)
    return pair


def returned(spec: str, *, seed: int = 0) -> Any:
    """What the function named by `spec` returns; see `user_task`."""
    module_name, _, function_name = spec.partition(":")
    with _current_folder_importable():
        module = _imported(module_name, spec)
        function = _function(module, function_name, spec)
        arguments = {"seed": seed} if "seed" in _parameters(function, spec) else {}
        try:
            return function(**arguments)
        except HomeostatError as error:  # such as Task's own refusal, which says all there is to say
            raise type(error)(f"{spec}: {error}") from error
        except (Exception, SystemExit) as error:
            raise HomeostatError(f"{spec}: the function failed.\n{short_traceback(error)}") from error


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    """The current folder first on sys.path, as `python -m` has it; afterwards last, if it was not there before.

    It stays, because a model builder may import more of the user's code when it is called; last, it shadows nothing.
    """
    folder = str(Path.cwd())
    known = folder in sys.path or "" in sys.path
    sys.path.insert(0, folder)
    importlib.invalidate_caches()  # a file that was written a moment ago is seen
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
        if not known:
            sys.path.append(folder)


def _imported(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            where = f"Looked in {Path.cwd()} and among the installed packages."
            raise HomeostatError(f"{spec}: there is no module {error.name!r}. {where}") from error
        raise HomeostatError(f"{spec}: importing {name} failed.\n{short_traceback(error)}") from error
    except (Exception, SystemExit) as error:
        raise HomeostatError(f"{spec}: importing {name} failed.\n{short_traceback(error)}") from error


def _function(module: ModuleType, name: str, spec: str) -> Callable[..., Any]:
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        place = getattr(module, "__file__", None) or "a module of Python's own"
        raise InvalidValue(f"{unknown(spec, f'function of {module.__name__}', name, own)} That module is {place}.")
    function = getattr(module, name)
    if not callable(function):
        raise invalid_type(spec, module.__name__, f"have {name!r} as a function", function)
    return function


def _parameters(function: Callable[..., Any], spec: str) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some callables written in C tell nothing
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variable and p.name != "seed"]
    if needed:
        cure = "Give them defaults; only a parameter named seed is passed."
        raise invalid_type(spec, "the function", "be callable without arguments", f"needed: {', '.join(needed)}", cure)
    return [p.name for p in parameters if p.kind not in (*variable, inspect.Parameter.POSITIONAL_ONLY)]


def short_traceback(error: BaseException) -> str:
    """The frames that lie in the user's own files, and the error's last lines."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(frame.filename)]
    lines = ["Traceback (your code only):\n", *traceback.format_list(frames)] if frames else []
    return "".join([*lines, *traceback.format_exception_only(error)]).rstrip()
