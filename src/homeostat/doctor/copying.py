"""A training copied whole: model, optimizer, and functions that refer to either, linked to each other as they were.

`copy.deepcopy` follows modules and tensors but not functions, and a loss that adds a penalty on `model.parameters()`
would go on using the user's own model. Such functions are made anew, and so is whatever stands between them and the
model: closures, globals, default arguments, containers, and objects of the user's classes. Not random.
"""

from __future__ import annotations

import copy
import functools
import itertools
import sys
import types
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from homeostat.errors import HomeostatError

Memo = dict[int, Any]
_Thing = TypeVar("_Thing")

_MOST = 10_000
"""Things that are looked at, the nearest first. Trainers and lists of parameters have hundreds; what has more holds
data, which need not be walked through for every copy."""

_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})
"""Types that refer to nothing."""

_FOREIGN = {*sys.stdlib_module_names, "torch", "numpy"}
"""Packages whose objects are left as they are."""


def copy_model(model: nn.Module, memo: Memo) -> nn.Module:
    """A deep copy; `memo` then leads from the id of every part to its copy.

    Raises: HomeostatError for a model that cannot be copied, with what stands in the way.
    """
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        cure = (
            "The doctor works on copies. Tensors that a module keeps from a forward pass must be detached, and handles "
            "(files, locks, generators) must not be attributes; or give the module a __deepcopy__."
        )
        raise HomeostatError(f"Training: model cannot be copied: {type(error).__name__}: {error}. {cure}") from error


def copy_optimizer(optimizer: Optimizer, memo: Memo) -> Optimizer:
    """A copy that holds the copied parameters, with its state, and without hooks; `memo` is that of the model."""
    try:
        new = copy.deepcopy(optimizer, memo)
        for name, value in vars(optimizer).items():  # what torch's own way of copying leaves out, as in LBFGS
            if name not in vars(new) and not callable(value) and "hook" not in name:
                setattr(new, name, copy.deepcopy(value, memo))
    except Exception as error:
        raise HomeostatError(f"Training: optimizer cannot be copied: {type(error).__name__}: {error}.") from error
    return new


def rebound(thing: _Thing, memo: Memo) -> _Thing:
    """A function, or a tuple of them, with the copies in the place of what was copied; itself if it refers to none.

    Modules, and tensors that collect gradients, are copied where they have not been: they would change by being used.

    Raises: HomeostatError for an object that refers to what was copied and cannot be copied itself.
    """
    rebinding = _Rebinding(memo, _leading_to_copies(thing, memo))
    new = rebinding.of(thing)
    rebinding.finish()
    return new


def _leading_to_copies(root: Any, memo: Memo) -> set[int]:
    """The ids of what refers, by whatever way, to something that is copied, and of that itself."""
    found: dict[int, Any] = {id(root): root}
    holders: defaultdict[int, list[int]] = defaultdict(list)
    waiting, left = deque([root]), _MOST
    copied: list[int] = []
    while waiting:
        thing = waiting.popleft()
        if id(thing) in memo or _changes_by_use(thing):
            copied.append(id(thing))
            continue
        for part in itertools.islice(_parts(thing), left):
            left -= 1
            if type(part) in _PLAIN:
                continue
            holders[id(part)].append(id(thing))
            if id(part) not in found:
                found[id(part)] = part
                waiting.append(part)
    leading: set[int] = set()
    while copied:
        key = copied.pop()
        if key not in leading:
            leading.add(key)
            copied += holders[key]
    return leading


class _Rebinding:
    """Makes the things anew that lead to copies: first empty, then filled, since they may refer to each other."""

    def __init__(self, memo: Memo, leading: set[int]) -> None:
        self.memo, self.leading = memo, leading
        self.made: dict[int, Any] = {}
        self.unfilled: deque[Callable[[], None]] = deque()

    def of(self, thing: Any) -> Any:
        """What stands in the place of a thing; what it refers to may be missing until `finish`."""
        key = id(thing)
        if key in self.memo:
            return self.memo[key]
        if key not in self.leading:
            return thing
        if key not in self.made:
            self.made[key] = self._new(thing)
        return self.made[key]

    def finish(self) -> None:
        """Fill what was made."""
        while self.unfilled:
            self.unfilled.popleft()()

    def _new(self, thing: Any) -> Any:
        if isinstance(thing, nn.Module):
            return copy_model(thing, self.memo)
        if isinstance(thing, Tensor):
            return copy.deepcopy(thing, self.memo)
        if isinstance(thing, types.MethodType):
            return types.MethodType(self.of(thing.__func__), self.of(thing.__self__))
        if isinstance(thing, functools.partial):
            keywords = {key: self.of(part) for key, part in thing.keywords.items()}
            return functools.partial(self.of(thing.func), *map(self.of, thing.args), **keywords)
        if isinstance(thing, tuple):
            return tuple.__new__(type(thing), map(self.of, thing))  # of a named tuple too
        if isinstance(thing, frozenset):
            return type(thing)(map(self.of, thing))
        if isinstance(thing, types.FunctionType):
            return self._function(thing)
        if isinstance(thing, types.CellType):
            return self._cell(thing)
        return self._filled_later(thing)

    def _cell(self, cell: types.CellType) -> types.CellType:
        new = types.CellType()

        def fill() -> None:
            new.cell_contents = self.of(cell.cell_contents)

        self.unfilled.append(fill)
        return new

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        known = function.__globals__
        names = [name for name in _global_names(function) if id(known[name]) in self.leading]
        scope = dict(known) if names else known
        closure = tuple(map(self.of, function.__closure__ or ())) or None
        new = types.FunctionType(function.__code__, scope, function.__name__, None, closure)
        new.__dict__.update(function.__dict__)
        defaults, keywords = function.__defaults__, function.__kwdefaults__

        def fill() -> None:
            scope.update({name: self.of(known[name]) for name in names})
            new.__defaults__ = None if defaults is None else tuple(map(self.of, defaults))
            new.__kwdefaults__ = None if keywords is None else {key: self.of(part) for key, part in keywords.items()}

        self.unfilled.append(fill)
        return new

    def _filled_later(self, thing: Any) -> Any:
        """A container, or an object, which is copied flatly and without its own code."""
        contained = isinstance(thing, dict | list | set | types.SimpleNamespace)
        try:
            new = copy.copy(thing) if contained else object.__new__(type(thing))
            if new is thing:
                raise TypeError("its copy is itself")
        except Exception as error:
            cure = "Let the loss close over what it needs of it, the model or its parameters, instead."
            what = f"{type(thing).__qualname__}, which refers to the model, cannot be copied"
            raise HomeostatError(f"Training: {what}: {type(error).__name__}: {error}. {cure}") from error

        def fill() -> None:
            if isinstance(thing, dict):
                new.clear()
                new.update({self.of(key): self.of(part) for key, part in thing.items()})
            elif isinstance(thing, list):
                new[:] = map(self.of, thing)
            elif isinstance(thing, set):
                new.clear()
                new.update(map(self.of, thing))
            else:
                for name, part in _attributes(thing).items():
                    object.__setattr__(new, name, self.of(part))

        self.unfilled.append(fill)
        return new


def _changes_by_use(thing: Any) -> bool:
    """Whether using it leaves something in it: gradients, statistics."""
    return isinstance(thing, nn.Module) or (isinstance(thing, Tensor) and thing.is_leaf and thing.requires_grad)


def _parts(thing: Any) -> Iterable[Any]:
    """What a thing refers to and may be called with, or change, by being used."""
    if isinstance(thing, types.FunctionType):
        defaults = (*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values())
        return (*(thing.__closure__ or ()), *defaults, *(thing.__globals__[name] for name in _global_names(thing)))
    if isinstance(thing, types.CellType):
        return _content(thing)
    if isinstance(thing, types.MethodType):
        return thing.__func__, thing.__self__
    if isinstance(thing, functools.partial):
        return (thing.func, *thing.args, *thing.keywords.values())
    if isinstance(thing, dict):
        return itertools.chain(thing.keys(), thing.values())
    if isinstance(thing, list | tuple | set | frozenset):
        return thing
    if isinstance(thing, type) or (_foreign(type(thing)) and not isinstance(thing, types.SimpleNamespace)):
        return ()
    return _attributes(thing).values()


def _attributes(thing: Any) -> dict[str, Any]:
    """What an object holds, in its dict and in slots."""
    try:
        found = dict(object.__getattribute__(thing, "__dict__"))
    except AttributeError:
        found = {}
    slotted = [vars(kind) for kind in type(thing).__mro__ if "__slots__" in vars(kind)]
    for name, slot in itertools.chain.from_iterable(names.items() for names in slotted):
        if isinstance(slot, types.MemberDescriptorType):
            with suppress(AttributeError):  # nothing is in it
                found[name] = slot.__get__(thing)
    return found


def _content(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # a name that is not bound yet
        return ()


def _foreign(thing: Any) -> bool:
    """Whether a class or function is of a package that knows nothing of the user's objects."""
    return str(thing.__module__).partition(".")[0] in _FOREIGN


def _global_names(function: types.FunctionType) -> Iterator[str]:
    """The globals that a function of the user's, and the functions inside it, refer to."""
    if not _foreign(function) and not str(function.__module__).startswith("homeostat."):
        yield from dict.fromkeys(name for name in _names(function.__code__) if name in function.__globals__)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
