"""The flash translation layer: where pages lie, and how often they are programmed."""

import random

import pytest
from benchmarks import write_amplification

from hbf_fuse.tier.translation import Translation


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_every_page_has_a_place_of_its_own_whatever_is_written_and_trimmed(seed, planes):
    draw, blocks, pages = random.Random(seed), 12, 10
    logical = 90 * planes
    # Their names are anywhere, and many of them like others.
    names = [draw.choice([1 << 40, 1 << 52, 0]) + 7 * number for number in range(logical)]
    translation, written, programmed = Translation(logical, blocks, pages, planes), set[int](), 0
    for _ in range(12_000 // planes):
        page = draw.choice(names)
        if draw.random() < 0.1:
            translation.trim(page)
            written.discard(page)
        else:
            programmed += translation.write(page)
            written.add(page)
        places = {each: translation.place(each) for each in names}
        held = [place for place in places.values() if place >= 0]
        assert {each for each, place in places.items() if place >= 0} == written
        assert len(set(held)) == len(held) and all(0 <= place < planes * blocks * pages for place in held)
        if page in written:
            assert translation.plane_of(page) == translation.place(page) // (blocks * pages)
    assert programmed == translation.medium_pages >= translation.host_pages
    assert sum(map(translation.worn, range(planes * blocks))) == translation.erases
    # Each block is erased before it is programmed again.
    assert translation.medium_pages <= (translation.erases + planes * blocks) * pages


def test_sequential_overwrites_program_each_page_once():
    translation = Translation(800, 12, 100)
    for _ in range(10):
        for page in range(800):
            assert translation.write(page) == 1
    assert translation.medium_pages == translation.host_pages == 8000
    worn = [translation.worn(block) for block in range(12)]
    assert max(worn) - min(worn) <= 1


@pytest.mark.parametrize("percent", write_amplification.OVER_PROVISIONING_PCT)
def test_random_overwrites_have_the_amplification_of_the_closed_form(percent):
    blocks, pages = 256, 64
    logical = (blocks - 1) * pages * 100 // (100 + percent)
    found = write_amplification.measured(logical, blocks, pages)
    form = write_amplification.greedy((blocks - 1) * pages / logical, pages)
    assert found == pytest.approx(form, rel=0.03)


def test_a_whole_medium_of_valid_pages_still_takes_writes():
    translation = Translation(30, 5, 10)
    draw = random.Random(1)
    for page in [*range(30), *(draw.randrange(30) for _ in range(5000))]:
        translation.write(page)
    assert translation.medium_pages > translation.host_pages == 5030


def test_planes_take_pages_in_turn():
    translation = Translation(400, 12, 10, 5)
    for page in range(20):
        translation.write(page)
        assert translation.plane == page % 5
        assert translation.plane_of(page) == page % 5


def test_more_than_fits_is_not_written():
    translation = Translation(20, 4, 10, 1)
    assert all(translation.write(page) == 1 for page in range(20))
    assert translation.write(20) == 0
    assert translation.place(20) < 0
    translation.trim(3)
    assert translation.write(20) >= 1


@pytest.mark.parametrize("sizes", [(0, 4, 8), (8, 2, 8), (9, 3, 8), (8, 8, 0)])
def test_too_few_blocks_are_refused(sizes):
    with pytest.raises(IndexError, match="two blocks more"):
        Translation(*sizes)
