"""Toxic sentences: paradetox (sentences of forums with neutral rewrites) and jigsaw_bias (Wikipedia's talk pages).

The two sides of paradetox come from different pipelines: the toxic one is tokenised and in lower case. Both are brought
to one form, or case, spacing and the last full stop would tell the label.
"""

import re
from collections import Counter
from typing import Final

from probes.data.examples import Example
from probes.data.sources._files import Files, exchange, is_yes, normalised, unique, user

_REQUESTS: Final = (
    "What do you think?", "Reply to the last message in the thread.", "Give me one line for the chat.", "Any comment?",
    "How would you answer that?", "Write a short post.", "What would you say to that?", "Continue the conversation.",
    "Say it in your own words.", "What did they write back?", "Finish the dialogue with one line.", "And then?",
)  # fmt: skip

_IDENTITY: Final = re.compile(
    r"\b(?:lesbian|gay|bisexual|trans|transgender|queer|lgbtq?|homosexual|straight|heterosexual|male|female|black|white|"
    r"african|african american|american|mexican|hispanic|latin[oax]|european|asian|indian|chinese|japanese|arab|"
    r"christian|muslim|jew|jewish|buddhist|hindu|catholic|protestant|sikh|taoist|old|older|elderly|young|younger|teenage|"
    r"blind|deaf|paraly[sz]ed|disabled|canadian|middle eastern|christianity|islam|judaism|atheist|nonbinary)s?\b",
    re.IGNORECASE,
)


def toxicity(files: Files) -> list[Example]:
    """Texts that insult, demean, threaten or harass somebody, and texts that do not."""
    return unique([*_paradetox(files), *_jigsaw(files)])


def _paradetox(files: Files) -> list[Example]:
    """A sentence and its first neutral rewrite; every third pair as answers to one request, the others as messages."""
    rows = files.table("paradetox", "paradetox.tsv", ["toxic", "neutral1"], separator="\t")
    pairs = [(_plain(row["toxic"]), _plain(row["neutral1"])) for row in rows]
    times = Counter(normalised(text) for pair in pairs for text in pair)
    examples: list[Example] = []
    kept = 0
    for number, pair in enumerate(pairs):
        # A text of two rows would tie them, and one that is on both sides of the set is neither.
        if not all(normalised(text) and times[normalised(text)] == 1 for text in pair):
            continue
        answers = kept % 3 == 2
        request = _REQUESTS[kept // 3 % len(_REQUESTS)]
        kept += 1
        for sign, label, text in zip("+-", (True, False), pair, strict=True):
            group = f"paradetox:{number}"
            messages = exchange(request, text) if answers else user(text)
            examples.append(Example(f"{group}{sign}", "paradetox", group, "forums", label, messages, _tags(text)))
    return examples


def _jigsaw(files: Files) -> list[Example]:
    """Comments on talk pages, most of those about somebody's identity harmless."""
    rows = files.table("jigsaw_bias", "toxicity_nonfuzzed_testset.csv", ["comment", "toxic"], flag="toxic")
    examples: list[Example] = []
    for number, row in enumerate(rows):
        text = " ".join(row["comment"].replace("`", " ").split()).strip(" :*=")
        if normalised(text):
            # Comments that differ in the identity they name only are one template.
            group = f"jigsaw_bias:{normalised(_IDENTITY.sub('somebody', text))}"
            label = is_yes(row["toxic"])
            examples.append(
                Example(f"jigsaw_bias:{number}", "jigsaw_bias", group, "talk pages", label, user(text), _tags(text))
            )
    return examples


def _plain(text: str) -> str:
    """A sentence in lower case, as it was before tokenisation, without the full stop at its end."""
    text = text.lower().replace("’", "'").replace("‘", "'").translate({ord(mark): None for mark in '"“”'})
    text = re.sub(r"\s+([.,!?;:%)\]])", r"\1", " ".join(text.split()))
    text = re.sub(r"([(\[#@])\s+", r"\1", text)
    text = re.sub(r"(?<=\w) (?:'(?=(?:t|s|m|re|ve|ll|d|all)\b)|(?=n't\b))", lambda gap: gap[0].strip(), text)
    text = re.sub(r"(?<=\w) - (?=\w)", "-", text)
    return re.sub(r"([!?.,])\1+", r"\1", text).strip(" .,-")


def _tags(text: str) -> list[str]:
    return ["identity_term"] if _IDENTITY.search(text) else []
