"""Between an engine and its monitor: frames and orders (``frames``), and activations in shared memory (``ring``)."""
