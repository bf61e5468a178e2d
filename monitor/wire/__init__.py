"""Between an engine and its monitor.

``frames``  engine to monitor: what each step computed, and what gates and the guard decided
``orders``  monitor to engine: steer, arm, stop, stream
``codec``   either as message parts, and back
``ring``    activations in shared memory
"""
