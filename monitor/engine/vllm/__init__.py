"""The methods and fields of vLLM that are taken hold of.

``plugin``        the entry point: installs wrappers that return at once where Plumbob is not switched on
``versions``      versions and features that can be tapped; refuses the others, naming the reason
``runner_v1``, ``runner_v2``   the only modules that touch a model runner; ``runners`` is what both wrap alike
``installed``     the plugin as vLLM's process will find it
``arguments``     vLLM's command line, read by its own parser; ``reading`` is what may not change what is read
``core``          the engine core: orders, the prefix cache
``requests``      requests in the front: their names, and which part of a user's request each is
``typed``         markers that a user typed into a message
``admission``     requests that ask to be steered
``stop``          ending a generation; ``stopped``, ``stopped_responses``: how clients are told
``worker``        the memory of cached scores
``wrap``          wrapping a method once
``load``          vLLM's own load generator
"""
