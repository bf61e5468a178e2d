"""Inside vLLM: taps on the residual stream, rows and requests, frames out, orders in. Only this package imports vllm.

``vllm/``      what is taken hold of in vLLM
``ops/``       the fused op and the gate
``steering/``  orders that steer, caps, leases, the guard
``gates/``     gates from the host's side
``settings``   ``additional_config.plumbob``: what shapes the graph apart from what changes with every start
``taps``       finds decoder blocks by structure and puts the op behind the tapped ones
``tapped``     what a model runner needs to be tapped
``slots``, ``rows``   requests to slots, and whose each row of a step is
``staging``, ``exporter``, ``outbox``   the way off the device and out to the monitor
``kv_scores``  scores of cached prefixes
``streams``    activations to readers in other processes
``selftest``, ``canary_run``   the bundle's canaries through the real engine
``offline``    one engine in a process of its own
"""
