"""Public data sets, turned into labelled conversations and ordinary requests.

They are read in place from a directory with one folder a set (``cast/``, ``saplma/`` …), plain or gzipped; none is
shipped. A set that is not there is left out; a file that is there and damaged is an error. What every concept takes:

==================  ===================================================================================================
``harmful_intent``  refusal_direction, cast (31 of its 45 kinds of request; alpaca), tuberlens (benign, high stakes)
``refusal``         caa (answers that decline), cast (beginnings of answers, crossed with requests of both kinds)
``toxicity``        paradetox (a sentence and its neutral rewrite), jigsaw_bias (talk pages that name identities)
``sycophancy``      caa (personas and opinions), and statements of the truth sets claimed by a user
``false_statement`` geometry_of_truth, saplma
``instructed_lie``  repe (facts), llm_liar (questions)
benign              gsm8k, humaneval, ifeval, mtbench, oasst
==================  ===================================================================================================

No set here shows a role-played lie or concealment. The order is the files'; nothing is drawn at random.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from probes.data.examples import Benign, Example
from probes.data.sources._benign import benign
from probes.data.sources._files import Files, Provenance
from probes.data.sources._lies import instructed_lie
from probes.data.sources._requests import harmful_intent, refusal
from probes.data.sources._sycophancy import sycophancy
from probes.data.sources._toxicity import toxicity
from probes.data.sources._truth import false_statement

__all__ = ["Provenance", "load", "load_benign", "provenance"]

_LOADERS: Final[dict[str, Callable[[Files], list[Example]]]] = {
    "harmful_intent": harmful_intent,
    "refusal": refusal,
    "toxicity": toxicity,
    "sycophancy": sycophancy,
    "false_statement": false_statement,
    "instructed_lie": instructed_lie,
}


def load(concept: str, data: Path) -> list[Example]:
    """The examples that public sets give for a concept; none where no set serves it.

    Args:
        concept: Its name, such as ``toxicity``.
        data: The directory with one folder a set.

    Raises:
        ConceptError: No such directory, or a damaged file; the message names the line.
    """
    files = Files(data)
    return _LOADERS[concept](files) if concept in _LOADERS else []


def load_benign(data: Path) -> list[Benign]:
    """The ordinary requests of public sets, each with its source.

    Args:
        data: The directory with one folder a set.

    Raises:
        ConceptError: No such directory, or a damaged file; the message names the line.
    """
    return benign(Files(data))


def provenance(what: str, data: Path) -> list[Provenance]:
    """The data sets and files of a concept's examples, in the order they are read.

    Args:
        what: A concept's name, or ``benign``.
        data: The directory with one folder a set.

    Raises:
        ConceptError: No such directory, or a damaged file; the message names the line.
    """
    files = Files(data)
    if what == "benign":
        benign(files)
    elif what in _LOADERS:
        _LOADERS[what](files)
    return files.provenance()
