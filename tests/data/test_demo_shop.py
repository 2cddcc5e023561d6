"""The demo shop: a user's next item can only be predicted well from texts and images together."""

import re
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from macrec_pipeline.data.demo.catalogue import KINDS, describe
from macrec_pipeline.data.demo.files import generate_shop
from macrec_pipeline.data.demo.images import IMAGE_SIZE, STYLES, draw_image
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
    """First-order oracles: they know each item's true kind or style, and count transitions in the training parts."""

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
        """Return P(next label | label) / P(next label) for the labels of each pair of items: float64 [N, N]."""
        transitions = np.full((label.max() + 1, label.max() + 1), 0.5)
        for items in shop.sequences:
            for item, next_item in pairwise(items[:-2]):
                transitions[label[item], label[next_item]] += 1
        share = np.bincount(label, weights=self.popularity)
        return ((transitions / transitions.sum(axis=1, keepdims=True)) / share)[label][:, label]

    def hit_rate(self, *lifts: NDArray[np.float64]) -> float:
        """Return HR@10 of the ranking by popularity times the lifts."""
        scores = [self.popularity * np.prod([lift[last] for lift in lifts], axis=0) for last in self.last]
        return self._hits([np.argsort(-score, kind="stable")[:_TOP] for score in scores])

    def fused_hit_rate(self) -> float:
        """Return HR@10 of a text and an image route, fused as MACRec does: items that both routes found come first."""
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


def test_both_modalities_together_predict_far_better(shop: Shop) -> None:
    """An oracle of kind and style far exceeds an oracle of either alone, and popularity is far below all of them."""
    oracles = _Oracles(shop)
    both = oracles.hit_rate(oracles.kind_lift, oracles.style_lift)
    by_kind, by_style = oracles.hit_rate(oracles.kind_lift), oracles.hit_rate(oracles.style_lift)
    popularity = oracles.hit_rate(np.ones_like(oracles.kind_lift))
    assert both > 0.6
    assert by_kind < 0.6 * both
    assert by_style < 0.5 * both
    assert min(by_kind, by_style) > 3 * popularity
    assert 0.03 < popularity < 0.08


def test_fusing_a_text_and_an_image_route_beats_each(shop: Shop) -> None:
    """Fusion helps even if each route knows nothing about the other modality."""
    oracles = _Oracles(shop)
    assert oracles.fused_hit_rate() > 1.15 * max(
        oracles.hit_rate(oracles.kind_lift), oracles.hit_rate(oracles.style_lift)
    )


def test_the_shop_has_the_documented_shape(shop: Shop) -> None:
    """600 items, about two per kind and style; 1,500 users with 8 to 20 distinct items each, at ascending times."""
    assert len(shop.kinds) == len(shop.styles) == 600
    assert len(shop.sequences) == 1500
    for items, times in zip(shop.sequences, shop.times, strict=True):
        assert MIN_EVENTS <= len(items) <= MAX_EVENTS
        assert len(set(items)) == len(items)
        assert all(earlier < later for earlier, later in pairwise(times))
    pair_counts = np.unique(np.stack([shop.kinds, shop.styles]), axis=1, return_counts=True)[1]
    assert pair_counts.min() >= 2
    assert pair_counts.max() <= 3
    assert set(shop.kinds.tolist()) == set(range(len(KINDS)))
    assert set(shop.styles.tolist()) == set(range(len(STYLES)))


def test_kind_and_style_are_independent(shop: Shop) -> None:
    """Each kind occurs in every style equally often, and the numbers of its items do not follow the styles."""
    table = np.zeros((len(KINDS), len(STYLES)))
    np.add.at(table, (shop.kinds, shop.styles), 1)
    assert table.min() >= 2
    for kind in range(len(KINDS)):
        assert sorted(shop.copies[shop.kinds == kind].tolist()) == list(range((shop.kinds == kind).sum()))
    assert abs(np.corrcoef(shop.copies, shop.styles)[0, 1]) < 0.1


@pytest.mark.parametrize(("num_items", "num_users"), [(40, 20), (75, 30), (1000, 20)])
def test_other_sizes_work(num_items: int, num_users: int) -> None:
    """Small shops have fewer kinds and styles, large ones more items per pair; each user has at least three events."""
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
_VISUAL_WORDS = {word for words in (_COLOURS, _PATTERNS, _SHAPES) for word in words.split()}


def test_texts_never_say_how_an_item_looks() -> None:
    """No title or description names a colour, pattern or shape, and the titles of a kind are distinct."""
    for kind in range(len(KINDS)):
        texts = [describe(kind, copy) for copy in range(60)]
        words = set(re.findall(r"[a-z]+", " ".join(title + " " + text for title, text in texts).lower()))
        assert not words & _VISUAL_WORDS
        assert len({title for title, _ in texts}) == 60


def test_images_of_a_style_are_similar_but_not_equal() -> None:
    """Two images of a style differ, but in colour they are mostly closer to each other than to other styles."""

    def histogram(style: int, number: int) -> NDArray[np.float64]:
        image = draw_image(style, numpy_generator(1, f"{style}/{number}"))
        assert image.size == (IMAGE_SIZE, IMAGE_SIZE)
        pixels = np.asarray(image).reshape(-1, 3) // 64
        return np.bincount(pixels @ [16, 4, 1], minlength=64) / len(pixels)

    first = np.stack([histogram(style, 0) for style in range(len(STYLES))])
    second = np.stack([histogram(style, 1) for style in range(len(STYLES))])
    distance = np.abs(first[:, None] - second[None]).sum(axis=2)
    assert (distance.argmin(axis=1) == np.arange(len(STYLES))).mean() > 0.8
    assert np.all(np.diag(distance) > 0)


def test_an_image_is_determined_by_its_style_and_generator() -> None:
    """The same random stream draws the same pixels; another stream draws different ones."""

    def draw(name: str) -> Image.Image:
        return draw_image(3, numpy_generator(7, name))

    assert draw("a").tobytes() == draw("a").tobytes()
    assert draw("a").tobytes() != draw("b").tobytes()
