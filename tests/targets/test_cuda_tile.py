"""Which tile products get on cards, and which sums are split."""

from __future__ import annotations

from itertools import product

import pytest

from qcompiler.targets.cuda.tile import GROUPS, PROCESSORS, SMALL, SUMS, TILES, Shape, choose_tile, parts_of

SHAPES = [Shape(*extents) for extents in product((1, 7, 49, 196, 3136), (10, 64, 512, 4096), (32, 576, 4608, 25088))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_part_has_something_to_do(shape: Shape) -> None:
    for tile in (*TILES, *SMALL):
        tiles = -(-shape.inner // tile.step)
        blocks = -(-shape.pixels // tile.pixels) * -(-shape.channels // tile.channels)
        for parts in parts_of(tile, shape):
            each = -(-tiles // parts)
            assert 0 < tiles - (parts - 1) * each <= each
            assert blocks * parts <= 2 * PROCESSORS
            assert 4 * blocks * parts * tile.pixels * tile.channels <= SUMS


def test_sums_are_split_where_blocks_are_few_and_sums_long() -> None:
    assert choose_tile("sm_75", Shape(1, 1000, 25088)).parts > 1  # the first fully connected layer of VGG, a quarter
    assert choose_tile("sm_90a", Shape(49, 512, 4608)).parts > 1  # the last stage of a ResNet
    assert choose_tile("sm_75", Shape(1, 1000, 25088), split=False).parts == 1
    assert choose_tile("sm_75", Shape(1, 1000, 512)).parts == 1
    assert choose_tile("sm_75", Shape(3136, 512, 4608)).parts == 1
    assert choose_tile("sm_90a", Shape(4096, 4096, 4096)).parts == 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_levels_get_what_they_have(shape: Shape) -> None:
    assert choose_tile("sm_61", shape).tile in SMALL
    assert choose_tile("sm_75", shape).tile in TILES
    choice = choose_tile("sm_90a", shape, 4, narrow=True)
    assert choice.tile in (*TILES, *GROUPS) and not choice.narrow
    assert not choice.tile.wgmma or choice.bits == 8 and choice.parts == 1
    narrow = choose_tile("sm_75", shape, 4, narrow=True)
    assert narrow.narrow == (narrow.bits == 4)


def test_tiles_without_tensor_cores_fit_what_old_cards_have() -> None:
    assert all(tile.shared("int16") <= 48 * 1024 for tile in SMALL)
