"""Inside vLLM: taps on the residual stream, rows and requests, frames out, orders in. Only this package imports vllm.

``vllm/``      the methods and fields of vLLM that are taken hold of
``ops/``       the fused op and the gate
``steering/``  orders that steer, caps, leases, the guard
``gates/``     gates from the host's side
``settings``   ``additional_config.plumbob``: settings that shape the graph, apart from those of each start
``taps``       finds decoder blocks by structure and puts the op behind the tapped ones
``tapped``     everything around one model runner's taps
``slots``, ``batch``, ``rows``   requests to slots, the requests of a step, and whose each row is
``staging``, ``exporter``, ``outbox``   the way off the device and out to the monitor
``reachability``  what keeps the engine from its monitor, in words
``kv_scores``  scores of cached prefixes
``streams``    activations to readers in other processes
``selftest``, ``canary_run``   the bundle's canaries through the real engine
``offline``    one engine in a process of its own
"""
