"""A tokenizer that is made in a second, and behaves as large ones do."""

import pytest

CHATML = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
CORPUS = """\
user assistant system [INST] [/INST] Zebras Walnut Copper Walnut Copper Zebras
You answer in one word. What do bees eat today? They eat nectar and pollen. Is it warm in the red house or the blue
house? It is warm in the house. Tell me about the little red boat. Tell me about the little blue boat. Thank you!
"""


def make_tokenizer(template: str | None, special: list[str], *, eos: str, bos: str | None = None):
    """Byte-level BPE, trained on a few sentences; words keep the space before them, as those of large models do."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        bos_token=bos,
        pad_token=eos,
        additional_special_tokens=special,
    )
    made.chat_template = template
    return made
