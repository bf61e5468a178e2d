"""The engine as a subprocess, for reading activations and for benchmarks.

``engine_process``  one engine in a process of its own, from the side that asks
``source``          activations as that engine computes and streams them
``inbox``           streamed rows, put together again as conversations
"""
