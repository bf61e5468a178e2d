"""Finding a decoder's blocks in modules of the shapes that models have."""

import functools

import pytest

from probes.errors import ModelError
from probes.models.blocks import adds_residual, find_blocks

torch = pytest.importorskip("torch")

from torch import nn

LAYERS = 3


class Block(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)


class Hybrid(Block):
    """A block of another class, without attention."""


class Tree(nn.Module):
    """A module with the children that it is given."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


def blocks(count: int = LAYERS) -> nn.ModuleList:
    return nn.ModuleList(Block() for _ in range(count))


def decoder(layers: nn.ModuleList, **more: nn.Module) -> Tree:
    return Tree(embed_tokens=nn.Embedding(50, 4), layers=layers, norm=nn.LayerNorm(4), **more)


def vision(layers: nn.ModuleList) -> Tree:
    return Tree(patches=nn.Linear(4, 4), position_embedding=nn.Embedding(20, 4), layers=layers)


def found(model: nn.Module, wanted: nn.ModuleList) -> bool:
    return find_blocks(model, LAYERS) == list(wanted)[:LAYERS]


def test_the_blocks_of_a_language_model():
    wanted = blocks()
    assert found(Tree(model=decoder(wanted), lm_head=nn.Linear(4, 50)), wanted)


def test_blocks_may_be_of_several_classes():
    wanted = nn.ModuleList([Hybrid(), Block(), Hybrid()])
    assert found(Tree(model=decoder(wanted)), wanted)


@pytest.mark.parametrize("first", ["vision", "language"])
def test_a_vision_tower_of_as_many_blocks_is_passed_over(first):
    wanted = blocks()
    parts = {"vision": vision(blocks()), "language": Tree(model=decoder(wanted), lm_head=nn.Linear(4, 50))}
    assert found(Tree(**{first: parts.pop(first)}, **parts), wanted)


@pytest.mark.parametrize("first", ["visual", "model"])
def test_a_vision_tower_beside_the_head_is_passed_over(first):
    """The head is as large as the embedding, and is an embedding by its class in vLLM."""
    wanted = blocks()
    parts = {"visual": vision(blocks()), "model": decoder(wanted)}
    assert found(Tree(**{first: parts.pop(first)}, **parts, lm_head=nn.Embedding(50, 4)), wanted)


def test_blocks_may_lie_deeper_than_the_embedding():
    wanted = blocks()
    language = Tree(embedding=Tree(words=nn.Embedding(50, 4)), encoder=Tree(layers=wanted))
    assert found(Tree(tower=vision(blocks()), transformer=language), wanted)


def test_experts_inside_the_blocks_are_not_blocks():
    wanted = nn.ModuleList(Block(*(Block() for _ in range(8))) for _ in range(LAYERS))
    assert found(decoder(wanted), wanted)


def test_blocks_that_predict_further_ahead_are_left_out():
    wanted = blocks(LAYERS + 2)
    assert found(decoder(wanted), wanted)


def test_shorter_lists_beside_the_blocks_do_not_matter():
    wanted = blocks()
    assert found(decoder(wanted, projections=blocks(LAYERS - 1)), wanted)


def test_a_model_whose_embedding_is_no_module_may_have_one_list():
    wanted = blocks()
    assert found(Tree(layers=wanted), wanted)
    with pytest.raises(ModelError, match="Tree has 2 lists of 3 decoder blocks"):
        find_blocks(Tree(layers=blocks(), others=blocks()), LAYERS)


def test_two_lists_that_are_equally_near_are_refused():
    with pytest.raises(ModelError, match="Tree has 2 lists of 3 decoder blocks near its token embedding"):
        find_blocks(decoder(blocks(), others=blocks()), LAYERS)


def test_a_model_with_too_few_blocks_is_refused():
    with pytest.raises(ModelError, match="Tree has 0 lists of 7 decoder blocks"):
        find_blocks(decoder(blocks()), 7)


def test_blocks_on_another_rank_are_refused():
    class PPMissingLayer(nn.Identity):
        """What vLLM puts in their place."""

    with pytest.raises(ModelError, match="only some of its 3 decoder blocks"):
        find_blocks(decoder(nn.ModuleList([PPMissingLayer(), Block(), Block()])), LAYERS)


def test_a_block_that_stands_for_several_layers_is_refused():
    shared = Block()
    with pytest.raises(ModelError, match="runs some of its 3 decoder blocks more than once"):
        find_blocks(decoder(nn.ModuleList([shared, Block(), shared])), LAYERS)


class Split(nn.Module):
    """As Llama's: the next norm adds."""

    def forward(self, hidden, residual):
        if residual is None:
            residual = hidden
        else:
            hidden, residual = self.norm(hidden, residual)
        return self.mlp(hidden), residual


class AlwaysSplit(nn.Module):
    def forward(self, hidden, residual):
        hidden, residual = self.norm(hidden, residual)
        return self.mlp(hidden), residual


class Delegating(nn.Module):
    def forward(self, hidden, residual):
        return self.run(hidden, residual)


class Inheriting(Split):
    pass


def scaled(method):
    @functools.wraps(method)
    def forward(*args, **kwargs):
        return method(*args, **kwargs)

    return forward


class Decorated(nn.Module):
    forward = scaled(Split.forward)


class Leftover(nn.Module):
    """As Cohere's: takes a residual, and returns another one that nobody adds."""

    def forward(self, hidden, residual):
        residual = hidden
        hidden, residual = self.norm(hidden, residual)
        return residual + self.mlp(hidden), residual


class Untaken(nn.Module):
    """As StableLM's: returns a residual without taking one."""

    def forward(self, hidden):
        residual = hidden
        return residual + self.mlp(hidden), residual


class Whole(nn.Module):
    def forward(self, hidden):
        return hidden + self.mlp(hidden)


@pytest.mark.parametrize("block", [Split, AlwaysSplit, Delegating, Inheriting, Decorated])
def test_a_block_that_uses_the_residual_it_is_given_leaves_an_addition_to_the_next(block):
    assert adds_residual(block())


@pytest.mark.parametrize("block", [Leftover, Untaken, Whole])
def test_a_block_that_overwrites_the_residual_returns_the_whole_state(block):
    assert not adds_residual(block())
