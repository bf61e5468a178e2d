"""vLLM and the monitor as child processes that live and die together.

``config``           the one configuration, and where it is read from
``checks``           everything that would fail later, found before anything is started
``engine_command``   vLLM's command line and environment
``vllm_arguments``   which further arguments vLLM may be given
``cpu_memory``       the share of memory that a vLLM for CPU can have on this machine
``child``            one process, its output passed on and its end remembered
``failure``          the reason why a process ended, out of what it wrote
``revival``          when a monitor that died is tried again, and when it is enough
``serving``          both of them, running
"""
