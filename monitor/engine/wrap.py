"""Wrapping methods of vLLM's classes, once a process."""

import functools
from collections.abc import Callable
from typing import Any, Final

Method = Callable[..., Any]

_MARK: Final = "__plumbob__"


def wrap_once(owner: type, name: str, wrapper: Callable[[Method], Method]) -> None:
    """Replace a method that a class defines itself by ``wrapper`` of it; a second call changes nothing.

    Args:
        owner: The class; where it inherits the method, nothing is done.
        name: Of the method.
        wrapper: Takes the method and returns what to call instead.
    """
    method = owner.__dict__.get(name)
    if method is None or hasattr(method, _MARK):
        return
    wrapped = functools.wraps(method)(wrapper(method))
    setattr(wrapped, _MARK, True)
    setattr(owner, name, wrapped)
