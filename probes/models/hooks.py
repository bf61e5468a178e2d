"""Hooks of torch that rewrite what enters and leaves modules, for as long as a context lasts."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from probes.models.sites import Site

Rewrite = Callable[[Any], Any]
"""From the value of a site to what goes on in its place, of the same shape: the value itself to leave it."""


def state_of(output: Any) -> Any:
    """The state in what a module returns: itself, or the first of several things that have no names."""
    several = isinstance(output, tuple | list) and output and not hasattr(output, "_fields")
    return output[0] if several else output


def with_output(output: Any, state: Any) -> Any:
    """Replace the state in what a module returns."""
    return type(output)([state, *output[1:]]) if isinstance(output, tuple | list) else state


def entering(arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The state among a block's arguments."""
    return arguments[0] if arguments else options["hidden_states"]


def with_state(
    arguments: tuple[Any, ...], options: dict[str, Any], state: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replace the state among a block's arguments."""
    return ((state, *arguments[1:]), options) if arguments else (arguments, {**options, "hidden_states": state})


@contextmanager
def removed(handle: Any) -> Generator[None]:
    """Remove a hook at the end."""
    try:
        yield
    finally:
        handle.remove()


def rewriting_input(block: Any, rewrite: Rewrite) -> AbstractContextManager[None]:
    """Rewrite the state that enters a block."""

    def enter(_module: Any, arguments: Any, options: Any) -> Any:
        state = entering(arguments, options)
        new = rewrite(state)
        return None if new is state else with_state(arguments, options, new)

    return removed(block.register_forward_pre_hook(enter, with_kwargs=True))


def rewriting_output(module: Any, rewrite: Rewrite) -> AbstractContextManager[None]:
    """Rewrite the state that leaves a module."""

    def leave(_module: Any, _arguments: Any, output: Any) -> Any:
        state = state_of(output)
        new = rewrite(state)
        return None if new is state else with_output(output, new)

    return removed(module.register_forward_hook(leave))


@contextmanager
def rewriting_flat_output(block: Any, module: Any, rewrite: Rewrite) -> Generator[None]:
    """Rewrite what a module of a block returns as ``(texts * tokens, hidden)``, in the shape of the block's state."""
    shape: list[Any] = [None]

    def enter(_module: Any, arguments: Any, options: Any) -> None:
        shape[0] = entering(arguments, options).shape

    def shaped(flat: Any) -> Any:
        state = flat.view(shape[0])
        new = rewrite(state)
        return flat if new is state else new.reshape(flat.shape)

    with removed(block.register_forward_pre_hook(enter, with_kwargs=True)), rewriting_output(module, shaped):
        yield


class Enough(Exception):
    """Ends a forward pass that has come as far as was wanted."""


def ending(block: Any) -> AbstractContextManager[None]:
    """End the pass behind a block, and behind the hooks that it has already, by raising :class:`Enough`."""

    def end(_module: Any, _arguments: Any, _output: Any) -> None:
        raise Enough

    return removed(block.register_forward_hook(end))


@contextmanager
def differentiable(model: Any) -> Generator[None]:
    """Begin the graph at the token embedding, and leave weights out of it."""
    import torch

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    begin = model.get_input_embeddings().register_forward_hook(lambda _m, _a, states: states.detach().requires_grad_())
    try:
        with removed(begin), torch.enable_grad():
            yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def keep(states: dict[Site, Any], site: Site, gradients: bool, value: Any) -> Any:
    """Read a value. What goes on is not what is kept, since some families add in place."""
    if gradients:
        # The one that is kept is the graph's, so that there are gradients with respect to it.
        states[site] = value
        return value.clone()
    states[site] = value.clone()
    return value


def rewritten(here: Sequence[tuple[Site, Rewrite]], value: Any) -> Any:
    """Apply the rewrites of one place, in order.

    Raises:
        ValueError: A rewritten value has another shape.
    """
    for site, rewrite in here:
        part = value if site.head is None else value.select(site.head_axis, site.head)
        new = rewrite(part)
        if new is part:
            continue
        if new.shape != part.shape:
            raise ValueError(f"Site {site} has the shape {tuple(part.shape)}; {tuple(new.shape)} does not fit there.")
        if site.head is None:
            value = new
        else:
            value = value.clone()
            value.select(site.head_axis, site.head).copy_(new)
    return value
