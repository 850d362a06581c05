"""Rows are counted, cut, joined and moved exactly: ragged rows keep their own slices, padding is masked."""

import random
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from vembed.errors import UsageError
from vembed.grad_cache.cachex.tree_utils import (
    concat_rows,
    list_tensors,
    map_tensors,
    move,
    num_rows,
    select_rows,
    split_rows,
    take_rows,
)
from vembed.types import Embeddings, Inputs, Ragged

# Per row: [text tokens], and for each image a number; rows have no text, no image, or several images.
TEXTS = [[[1, 1]], [], [[2, 2]], [[3, 3]], [], [], [[4, 4]]]
IMAGES = [[], [10], [20, 21, 22], [], [30, 31], [], [40]]


def make_inputs(texts=TEXTS, images=IMAGES) -> Inputs:
    def ragged(rows, shape):
        values = torch.tensor([value for row in rows for value in row]).reshape(-1, *shape)
        return Ragged(values, torch.tensor([len(row) for row in rows]))

    return Inputs(len(texts), {"input_ids": ragged(texts, (2,)), "pixel_values": ragged(images, (1,))}, 3)


def as_lists(inputs: Inputs) -> tuple[list, list]:
    text, image = inputs.tensors["input_ids"], inputs.tensors["pixel_values"]
    texts = [part.tolist() for part in text.values.split(text.counts.tolist())]
    images = [part.flatten().tolist() for part in image.values.split(image.counts.tolist())]
    return texts, images


class Pair(NamedTuple):
    left: torch.Tensor
    right: list


@dataclass(frozen=True)
class Page:
    words: Ragged
    title: str


def test_every_row_keeps_its_own_slices_for_every_cut():
    inputs = make_inputs()
    for start in range(8):
        for stop in range(start, 8):
            part = take_rows(inputs, start, stop)
            assert as_lists(part) == (TEXTS[start:stop], IMAGES[start:stop])
            assert part.num_rows == num_rows(part) == stop - start


def test_a_cut_is_a_view():
    inputs = make_inputs()
    part = take_rows(inputs, 2, 5).tensors["pixel_values"].values
    assert part.untyped_storage().data_ptr() == inputs.tensors["pixel_values"].values.untyped_storage().data_ptr()


def test_any_choice_of_rows_takes_their_slices_along():
    draw = random.Random(0)
    for _ in range(100):
        index = [draw.randrange(7) for _ in range(draw.randrange(9))]
        part = select_rows(make_inputs(), torch.tensor(index, dtype=torch.int64))
        assert as_lists(part) == ([TEXTS[row] for row in index], [IMAGES[row] for row in index])
        assert part.num_rows == len(index)


@pytest.mark.parametrize(("chunk_size", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (100, [7])])
def test_chunks_joined_again_are_the_whole(chunk_size, sizes):
    chunks = split_rows(make_inputs(), chunk_size)
    assert [chunk.num_rows for chunk in chunks] == sizes
    assert as_lists(concat_rows(chunks)) == (TEXTS, IMAGES)


def test_no_rows_are_one_chunk():
    (chunk,) = split_rows(take_rows(make_inputs(), 0, 0), 4)
    assert chunk.num_rows == 0


def test_inputs_without_tensors_still_have_rows():
    assert [chunk.num_rows for chunk in split_rows(Inputs(5, {}), 2)] == [2, 2, 1]
    assert select_rows(Inputs(5, {}), torch.tensor([4, 4, 0])).num_rows == 3


def test_texts_that_were_cut_are_counted_for_the_whole_only():
    part = take_rows(make_inputs(), 0, 2)
    assert part.num_truncated == 0
    assert concat_rows([make_inputs(), make_inputs()]).num_truncated == 6


def test_containers_keep_their_form():
    tree = {
        "list": [torch.arange(4), None],
        "pair": Pair(torch.arange(4) + 10, [torch.arange(4) + 20]),
        "page": Page(Ragged(torch.arange(6), torch.tensor([0, 2, 3, 1])), "title"),
        "scale": 2.5,
    }
    part = take_rows(tree, 1, 3)
    assert part["list"][0].tolist() == [1, 2]
    assert part["list"][1] is None
    assert isinstance(part["pair"], Pair)
    assert part["pair"].left.tolist() == [11, 12]
    assert part["pair"].right[0].tolist() == [21, 22]
    assert (part["page"].words.values.tolist(), part["page"].title) == ([0, 1, 2, 3, 4], "title")
    assert part["scale"] == 2.5
    whole = concat_rows(split_rows(tree, 3))
    assert all(torch.equal(a, b) for a, b in zip(list_tensors(whole), list_tensors(tree), strict=True))
    assert len(list_tensors(tree)) == 5


def test_tensors_that_disagree_about_rows_are_refused():
    with pytest.raises(UsageError, match=r"same number of rows, but have \[2, 3\]"):
        num_rows({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(UsageError, match="there is no tensor in it"):
        num_rows({"a": None})


def test_an_inputs_of_the_wrong_size_is_refused():
    with pytest.raises(UsageError, match=r"\[6, 7\]"):
        num_rows(Inputs(6, make_inputs().tensors))


def test_tensors_of_differing_width_are_not_padded():
    with pytest.raises(UsageError, match=r"\[\(2,\), \(3,\)\]"):
        concat_rows([{"input_ids": torch.zeros(1, 2)}, {"input_ids": torch.zeros(1, 3)}])


def test_differing_values_without_rows_are_refused():
    with pytest.raises(UsageError, match="must be equal to be joined"):
        concat_rows([{"scale": 1.0}, {"scale": 2.0}])


def test_single_vectors_are_joined_as_they_are():
    joined = concat_rows([Embeddings(torch.ones(2, 3)), Embeddings(torch.zeros(1, 3))])
    assert joined.vectors.tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]
    assert joined.mask is None


def test_tokens_are_padded_and_masked():
    short = Embeddings(torch.ones(2, 1, 3))
    long = Embeddings(torch.full((1, 3, 3), 2.0), torch.tensor([[True, False, True]]))
    joined = concat_rows([short, long])
    assert joined.vectors.shape == (3, 3, 3)
    assert joined.vectors[:2, 1:].abs().sum() == 0
    assert joined.mask.tolist() == [[True, False, False]] * 2 + [[True, False, True]]


def test_equally_many_tokens_without_masks_need_none():
    joined = concat_rows([Embeddings(torch.ones(2, 4, 3)), Embeddings(torch.ones(1, 4, 3))])
    assert joined.mask is None


def test_gradients_pass_through_a_join():
    parts = [torch.ones(1, tokens, 2, requires_grad=True) for tokens in (1, 3)]
    concat_rows([Embeddings(part) for part in parts]).vectors.sum().backward()
    assert all(torch.equal(part.grad, torch.ones_like(part)) for part in parts)


def test_every_tensor_is_mapped_and_moved():
    doubled = map_tensors(lambda tensor: tensor * 2, make_inputs())
    assert doubled.tensors["pixel_values"].values.flatten().tolist() == [20, 40, 42, 44, 60, 62, 80]
    assert doubled.tensors["pixel_values"].counts.tolist() == [0, 2, 6, 0, 4, 0, 2]
    moved = move(make_inputs(), "meta")
    assert {tensor.device.type for tensor in list_tensors(moved)} == {"meta"}
    assert len(list_tensors(moved)) == 4
    assert moved.num_truncated == 3
