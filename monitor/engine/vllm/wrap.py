"""Wrapping methods of vLLM's classes, once a process, and checking that they have the fields that are read."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final

Method = Callable[..., Any]

_MARK: Final = "__plumbob__"


def require_fields(owner: type, *names: str) -> None:
    """Check that a class declares the fields that are read of its instances.

    Raises:
        AttributeError: It lacks one.
    """
    declared = {name for parent in owner.__mro__ for name in inspect.get_annotations(parent)}
    for name in names:
        if name not in declared:
            raise AttributeError(f"{owner.__module__}.{owner.__name__} has no {name}")


def wrap_once(owner: type, name: str, wrapper: Callable[[Method], Method]) -> None:
    """Replace a method by ``wrapper`` of it; a second call changes nothing.

    Args:
        owner: The class; where it inherits the method, nothing is done.
        name: Of the method, which may be one of the class.
        wrapper: Takes the method, as a function, and returns what to call instead.

    Raises:
        AttributeError: The class has no such method, not even an inherited one.
    """
    method = owner.__dict__.get(name)
    if method is None and not hasattr(owner, name):
        raise AttributeError(f"{owner.__module__}.{owner.__name__} has no {name}")
    of_class = isinstance(method, classmethod)
    function: Any = method.__func__ if isinstance(method, classmethod) else method
    if function is None or hasattr(function, _MARK):
        return
    wrapped = functools.wraps(function)(wrapper(function))
    setattr(wrapped, _MARK, True)
    setattr(owner, name, classmethod(wrapped) if of_class else wrapped)
