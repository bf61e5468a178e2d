"""Questions to the model while it is steered: an operator's requests, or the contexts of a concept's pairs."""

from collections.abc import Sequence
from typing import Final

import msgspec

from probes.data.concepts import Concept
from probes.data.requests import Request, RequestError, encode_request
from probes.errors import SteeringError
from probes.models.activations import TransformersSource
from probes.steering.comparison import Question
from probes.steering.damage import Text

FEWEST: Final = 10
"""Groups of prompts: an interval by resampling fewer says nothing."""
COUNT: Final = 32
"""Contexts of a concept's pairs that are asked, unless told otherwise."""
LONGEST: Final = 96
"""Tokens of such a context: longer ones cost more than they tell."""


def of_requests(source: TransformersSource, requests: Sequence[Request], max_tokens: int) -> list[Question]:
    """Requests as prompts: an answer at their end is left out, and given anew.

    Raises:
        RequestError: The chat template refuses one, or it has no room for an answer.
        SteeringError: There are too few.
    """
    found: list[Question] = []
    for request in requests:
        ids = _encoded(source, request)
        _require_room(source, str(request.id), ids, max_tokens)
        found.append(Question(str(request.id), request.group or f"request {request.id}", ids))
    return _enough(found)


def of_concept(source: TransformersSource, concept: Concept, max_tokens: int, count: int = COUNT) -> list[Question]:
    """The contexts of a concept's pairs; of pairs without answers, the side that shows the concept.

    Raises:
        SteeringError: There are too few short ones.
    """
    seen: dict[tuple[int, ...], Question] = {}
    for pair in concept.pairs:
        ends_with_answer = pair.positive[-1].role == "assistant"
        messages = pair.positive[:-1] if ends_with_answer else pair.positive
        if not messages:
            continue
        ids = source.encode(messages, respond=True)
        if len(ids) <= LONGEST:
            seen.setdefault(tuple(ids), Question(pair.id, pair.topic, ids))
    every = list(seen.values())
    chosen = every[:: max(1, len(every) // count)][:count]
    for question in chosen:
        _require_room(source, question.id, question.token_ids, max_tokens)
    return _enough(chosen)


def ordinary_of(requests: Sequence[Request]) -> list[Text]:
    """An operator's own ordinary conversations, to measure damage on.

    Raises:
        RequestError: One does not end with an answer.
        SteeringError: There are too few.
    """
    for request in requests:
        if not request.messages or request.messages[-1].role != "assistant" or not request.messages[-1].content.strip():
            raise RequestError(
                f"Request {request.id!r} does not end with an answer.", "Perplexity is of answers: leave it out."
            )
    texts = [Text(str(request.id), request.group or f"request {request.id}", request.messages) for request in requests]
    if len({text.group for text in texts}) < FEWEST:
        raise SteeringError(
            f"There are {len(texts)} ordinary answers.", f"Give {FEWEST} groups of them at least, better 40."
        )
    return texts


def _encoded(source: TransformersSource, request: Request) -> list[int]:
    """A request's tokens up to where its answer begins."""
    messages = request.messages
    while messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    if request.messages and not messages:
        raise RequestError(
            f"Request {request.id!r} cannot be asked: there is nothing before its answer.", "Leave it out."
        )
    # The answer is given anew, whatever became of it in the file.
    template = {name: value for name, value in request.template.items() if name != "continue_final_message"}
    template["add_generation_prompt"] = True
    return encode_request(source.tokenizer, msgspec.structs.replace(request, messages=messages, template=template))


def _require_room(source: TransformersSource, name: str, ids: Sequence[int], max_tokens: int) -> None:
    context = getattr(source.model.config.get_text_config(), "max_position_embeddings", None)
    if not ids:
        raise RequestError(f"Request {name!r} has no tokens.", "Leave it out.")
    if context is not None and len(ids) + max_tokens > context:
        raise RequestError(
            f"Request {name!r} has {len(ids)} tokens, which leaves no room for {max_tokens} more.",
            f"The model reads {context} at once: leave it out, or ask for less with --tokens.",
        )


def _enough(questions: list[Question]) -> list[Question]:
    groups = len({question.group for question in questions})
    if groups < FEWEST:
        raise SteeringError(
            f"There are {len(questions)} prompts in {groups} groups.",
            f"Give {FEWEST} groups at least, better 50, with --prompts.",
        )
    return questions
