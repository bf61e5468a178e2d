"""Run the tests in stages, and close with one line for all of them: ``python -m tests.suite [--all] [pytest options]``.

1. ``parallel``: what needs no engine, on two processes of one thread each;
2. ``engines``: real engines, two at a time, the tests of a file in one process;
3. ``long``, alike, with ``--all``: compiled engines, benchmarks, every family of models, Model Runner V2 in the
   interpreter.

A stage that fails does not keep the next from running.
"""

import re
import subprocess
import sys
import time
from collections import Counter

STAGES = {
    "parallel": ("-m", "not vllm and not long", "-n", "2", "--dist", "loadscope"),
    "engines": ("-m", "vllm and not long", "-n", "2", "--dist", "loadfile"),
    "long": ("-m", "long", "-n", "2", "--dist", "loadfile"),
}
"""Options of pytest for each."""
SLOWEST = "25"
"""Durations that each stage prints."""
NOTHING = 5
"""pytest's exit code where no test was selected."""

_COUNT = re.compile(r"(\d+) (\w+)")
_ORDER = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warnings", "errors")


def closing(lines: list[str], seconds: float) -> str:
    """Add up pytest's closing lines.

    Args:
        lines: Of each stage.
        seconds: That all of them took.

    Returns:
        A line as pytest prints it. What one stage leaves to another is not counted as deselected.
    """
    counts: Counter[str] = Counter()
    for line in lines:
        for number, outcome in _COUNT.findall(line.rpartition(" in ")[0]):
            plural = outcome + "s" * (outcome in ("warning", "error"))
            counts[plural] += int(number)
    del counts["deselected"]
    parts = [f"{counts[outcome]} {outcome}" for outcome in _ORDER if counts[outcome]]
    minutes, rest = divmod(int(seconds), 60)
    words = f" {', '.join(parts) or 'no tests ran'} in {seconds:.2f}s ({minutes // 60}:{minutes % 60:02}:{rest:02}) "
    return words.center(80, "=")


def run(stage: str, options: list[str]) -> tuple[int, str]:
    """Run a stage, passing its output on; its exit code, and its last line."""
    print(f"== {stage}", flush=True)
    command = [sys.executable, "-m", "pytest", *STAGES[stage], "--durations", SLOWEST, *options]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode, last


def main(arguments: list[str]) -> int:
    begin = time.monotonic()
    stages = [stage for stage in STAGES if stage != "long" or "--all" in arguments]
    options = [argument for argument in arguments if argument != "--all"]
    codes, lines = zip(*(run(stage, options) for stage in stages), strict=True)
    print(closing(list(lines), time.monotonic() - begin))
    bad = [code for code in codes if code not in (0, NOTHING)]
    return bad[0] if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
