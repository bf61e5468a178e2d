"""Inside vLLM: taps on the residual stream, rows and requests, frames out, orders in.

===============  ==========================================================================================
module           role
===============  ==========================================================================================
``plugin``       the entry point: installs wrappers that return at once where Plumbob is not switched on
``settings``     ``additional_config.plumbob``: what shapes the graph apart from what changes with every start
``compat``       versions and features that can be tapped; refuses the others, naming the reason
``op``           the fused op: scores and steering of one layer, in one pass over its rows
``taps``         finds decoder blocks by structure and puts the op behind the tapped ones
``slots``        requests to slots, and the row map of each step
``runner_v1``    the only module that touches the V1 model runner
``core``         the only module that touches the engine core: request ids, orders, the prefix cache
``wrap``         wrapping a method once
``link``         the threads that talk to the monitor; nothing else blocks on a socket
===============  ==========================================================================================

This is the only package that imports vllm.
"""
