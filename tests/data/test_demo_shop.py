"""The demo shop: it takes texts and pictures together to foresee what people do next."""

import re
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from macrec_pipeline.data.demo.catalogue import KINDS, describe
from macrec_pipeline.data.demo.files import generate_shop
from macrec_pipeline.data.demo.images import PICTURE_SIZE, STYLES, draw_image
from macrec_pipeline.data.demo.shop import MAX_EVENTS, MIN_EVENTS, Shop
from macrec_pipeline.datasets import DemoSource
from macrec_pipeline.runtime.seeds import numpy_generator

_TOP = 10
_BEAMS = 20


@pytest.fixture(scope="module")
def shop() -> Shop:
    """The shop of `datasets/demo.yaml`."""
    return generate_shop(DemoSource(reader="demo"))


class _Oracles:
    """First-order oracles that know the true kind, or style, of every item, and count transitions in training parts."""

    def __init__(self, shop: Shop) -> None:
        self.popularity = np.bincount(
            [item for items in shop.sequences for item in items[:-2]], minlength=len(shop.kinds)
        ).astype(float)
        self.popularity /= self.popularity.sum()
        self.kind_lift = self._lift(shop, shop.kinds)
        self.style_lift = self._lift(shop, shop.styles)
        self.last = [items[-2] for items in shop.sequences]
        self.target = [items[-1] for items in shop.sequences]

    def _lift(self, shop: Shop, label: NDArray[np.int64]) -> NDArray[np.float64]:
        """P(next label | label) / P(label), for the label of each item: float64 [N, N]."""
        steps = np.full((label.max() + 1, label.max() + 1), 0.5)
        for items in shop.sequences:
            for one, other in pairwise(items[:-2]):
                steps[label[one], label[other]] += 1
        share = np.bincount(label, weights=self.popularity)
        return ((steps / steps.sum(axis=1, keepdims=True)) / share)[label][:, label]

    def hit_rate(self, *lifts: NDArray[np.float64]) -> float:
        """HR@10 of popularity times the lifts."""
        scores = [self.popularity * np.prod([lift[last] for lift in lifts], axis=0) for last in self.last]
        return self._hits([np.argsort(-score, kind="stable")[:_TOP] for score in scores])

    def fused_hit_rate(self) -> float:
        """HR@10 of two routes, each blind to the other's modality, fused as MACRec does: found by both comes first."""
        tops = []
        for last in self.last:
            text = np.log(self.popularity * self.kind_lift[last] + 1e-12)
            image = np.log(self.popularity * self.style_lift[last] + 1e-12)
            by_text, by_image = (set(np.argsort(-score)[:_BEAMS].tolist()) for score in (text, image))
            score = {item: text[item] for item in by_text} | {item: image[item] for item in by_image}
            score |= {item: (text[item] + image[item]) / 2 + 100 for item in by_text & by_image}
            tops.append(np.array(sorted(score, key=lambda item: -score[item])[:_TOP]))
        return self._hits(tops)

    def _hits(self, tops: list[NDArray[np.int64]]) -> float:
        return float(np.mean([target in top for target, top in zip(self.target, tops, strict=True)]))


def test_both_modalities_together_know_far_more(shop: Shop) -> None:
    """An oracle of kind and style doubles or nearly doubles each alone; popularity is far below all of them."""
    oracles = _Oracles(shop)
    both = oracles.hit_rate(oracles.kind_lift, oracles.style_lift)
    by_kind, by_style = oracles.hit_rate(oracles.kind_lift), oracles.hit_rate(oracles.style_lift)
    popularity = oracles.hit_rate(np.ones_like(oracles.kind_lift))
    assert both > 0.6
    assert by_kind < 0.6 * both
    assert by_style < 0.5 * both
    assert min(by_kind, by_style) > 3 * popularity
    assert 0.03 < popularity < 0.08


def test_fusing_two_blind_routes_beats_each(shop: Shop) -> None:
    """Route fusion pays even if neither route knows anything of the other's modality."""
    oracles = _Oracles(shop)
    assert oracles.fused_hit_rate() > 1.15 * max(
        oracles.hit_rate(oracles.kind_lift), oracles.hit_rate(oracles.style_lift)
    )


def test_the_shop_has_the_promised_shape(shop: Shop) -> None:
    """600 items, 1,500 people with 8 to 20 distinct items each, times that rise, about two items a look."""
    assert len(shop.kinds) == len(shop.styles) == 600
    assert len(shop.sequences) == 1500
    for items, times in zip(shop.sequences, shop.times, strict=True):
        assert MIN_EVENTS <= len(items) <= MAX_EVENTS
        assert len(set(items)) == len(items)
        assert all(one < other for one, other in pairwise(times))
    looks = np.unique(np.stack([shop.kinds, shop.styles]), axis=1, return_counts=True)[1]
    assert looks.min() >= 2
    assert looks.max() <= 3
    assert set(shop.kinds.tolist()) == set(range(len(KINDS)))
    assert set(shop.styles.tolist()) == set(range(len(STYLES)))


def test_kind_and_style_say_nothing_of_each_other(shop: Shop) -> None:
    """Each kind comes in every style equally often, and its copies are numbered in no order of style."""
    table = np.zeros((len(KINDS), len(STYLES)))
    np.add.at(table, (shop.kinds, shop.styles), 1)
    assert table.min() >= 2
    for kind in range(len(KINDS)):
        assert sorted(shop.copies[shop.kinds == kind].tolist()) == list(range((shop.kinds == kind).sum()))
    assert abs(np.corrcoef(shop.copies, shop.styles)[0, 1]) < 0.1


@pytest.mark.parametrize(("num_items", "num_users"), [(40, 20), (75, 30), (1000, 20)])
def test_other_sizes_work(num_items: int, num_users: int) -> None:
    """Small shops have fewer kinds and styles, large ones more copies; everybody still has three events at least."""
    shop = generate_shop(DemoSource(reader="demo", num_items=num_items, num_users=num_users))
    assert len(shop.kinds) == num_items
    assert len(shop.sequences) == num_users
    assert min(len(items) for items in shop.sequences) >= 3
    assert max(max(items) for items in shop.sequences) < num_items


_COLOURS = "black white red blue green yellow orange purple pink brown grey gray navy teal golden dark bright colour"
_PATTERNS = (
    "stripe striped dot dotted check checked tartan gradient ring rings zigzag triangle wave waves petal brick ray"
)
_SHAPES = "diagonal pinstripe pattern patterned plain round square star circle"
_LOOKS = {word for words in (_COLOURS, _PATTERNS, _SHAPES) for word in words.split()}


def test_texts_never_say_how_an_item_looks() -> None:
    """No colour, pattern or shape is in any title or description, and titles of a kind are distinct."""
    for kind in range(len(KINDS)):
        texts = [describe(kind, copy) for copy in range(60)]
        words = set(re.findall(r"[a-z]+", " ".join(title + " " + text for title, text in texts).lower()))
        assert not words & _LOOKS
        assert len({title for title, _ in texts}) == 60


def test_pictures_of_a_style_are_alike_but_not_the_same() -> None:
    """Two pictures of one style are nearer to each other in colour than to any other style, yet differ."""

    def histogram(style: int, number: int) -> NDArray[np.float64]:
        picture = draw_image(style, numpy_generator(1, f"{style}/{number}"))
        assert picture.size == (PICTURE_SIZE, PICTURE_SIZE)
        pixels = np.asarray(picture).reshape(-1, 3) // 64
        return np.bincount(pixels @ [16, 4, 1], minlength=64) / len(pixels)

    first = np.stack([histogram(style, 0) for style in range(len(STYLES))])
    second = np.stack([histogram(style, 1) for style in range(len(STYLES))])
    distance = np.abs(first[:, None] - second[None]).sum(axis=2)
    assert (distance.argmin(axis=1) == np.arange(len(STYLES))).mean() > 0.8
    assert np.all(np.diag(distance) > 0)


def test_a_picture_follows_from_its_generator() -> None:
    """The same style and stream draw the same pixels, another stream others."""

    def draw(name: str) -> Image.Image:
        return draw_image(3, numpy_generator(7, name))

    assert draw("a").tobytes() == draw("a").tobytes()
    assert draw("a").tobytes() != draw("b").tobytes()
