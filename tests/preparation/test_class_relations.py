"""Relations between the classes of a job: blind to how each lies, and to what it has beside structure."""

from __future__ import annotations

import numpy as np
import pytest

from cryoray.preparation import class_relations
from cryoray.preparation.class_relations import RELATED, SIDE, around, relations, window

RADIUS = 17.0
AXIS = np.arange(SIDE) - SIDE // 2
CIRCLE = np.hypot(AXIS[:, None], AXIS) <= RADIUS


def spots(places: np.ndarray, width: float = 1.6) -> np.ndarray:
    """float64 [SIDE, SIDE]: bright spots at places [k, 2], px from the middle."""
    y, x = AXIS[:, None], AXIS[None, :]
    image = sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * width**2)) for a, b in places)
    return np.where(CIRCLE, image, 0.0)


def job(seed: int = 0, views: int = 6, noise: int = 6) -> np.ndarray:
    """Views of one set of spots, each turned, the odd ones mirrored, then noise in the circle."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(-7, 7, (9, 2))
    images = []
    for view in range(views):
        angle = rng.uniform(0, 2 * np.pi)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        mirror = np.array([1.0, -1.0 if view % 2 else 1.0])
        images.append(spots(places * mirror @ turn.T + rng.uniform(-1, 1, 2)))
    images += [np.where(CIRCLE, rng.normal(size=(SIDE, SIDE)), 0.0) for _ in range(noise)]
    return np.array(images)


def of(images: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(RELATED, relations(images, RADIUS).T, strict=True))


def test_views_of_one_object_are_related_turned_mirrored_and_moved_and_noise_is_not():
    found = of(job())
    assert found["relation"][:6].min() > 0.8
    assert found["relation"][6:].max() < 0.4


def test_structure_of_a_particle_is_central_and_that_of_noise_is_everywhere():
    found = of(job())
    assert found["centralStructure"][:6].min() > 2 > found["centralStructure"][6:].max()
    assert found["extent"][:6].max() < 0.75 < found["extent"][6:].min()


@pytest.mark.parametrize(
    "change",
    [
        # Pixel size // 2 is the centre, so the first row and column have no partner.
        lambda images: np.where(CIRCLE, np.roll(images[:, ::-1], 1, axis=1), 0),
        lambda images: np.where(CIRCLE, np.rot90(np.roll(images, -1, 1), 1, (1, 2)), 0),
    ],
    ids=["mirrored", "turned"],
)
def test_one_class_turned_or_mirrored_changes_no_number_of_any(change):
    images = job()
    changed = np.concatenate([change(images[:1]), images[1:]])
    assert np.abs(changed[0] - images[0]).max() > 0.1
    np.testing.assert_allclose(
        relations(changed, RADIUS), relations(images, RADIUS), rtol=0, atol=0.02
    )


def test_contrast_and_level_of_single_classes_change_nothing():
    images = job()
    scale = np.linspace(0.01, 300, len(images))[:, None, None]
    np.testing.assert_allclose(
        relations(images * scale + 7, RADIUS), relations(images, RADIUS), rtol=0, atol=1e-3
    )


def test_the_order_of_classes_does_not_matter(monkeypatch):
    images = job()
    order = np.random.default_rng(1).permutation(len(images))
    expected = relations(images, RADIUS)
    np.testing.assert_allclose(relations(images[order], RADIUS), expected[order], atol=1e-5)
    # Nor does how many are worked on together.
    monkeypatch.setattr(class_relations, "_TOGETHER", 5)
    np.testing.assert_allclose(relations(images, RADIUS), expected, atol=1e-5)


def test_a_class_alone_has_no_relation_and_a_flat_one_has_nothing():
    images = job(views=1, noise=0)
    found = relations(np.concatenate([images, np.zeros_like(images)]), RADIUS)
    assert np.isnan(found[0, 0])
    assert np.isfinite(found[0, 1:]).all()
    assert np.isnan(found[1]).all()
    spoilt = images.copy()
    spoilt[0, 3, 3] = np.nan
    assert np.isnan(relations(spoilt, RADIUS)).all()


def test_flat_classes_do_not_dilute_the_relations_of_others():
    images = job()
    more = np.concatenate([images, np.zeros((20, SIDE, SIDE))])
    np.testing.assert_allclose(
        relations(more, RADIUS)[: len(images)], relations(images, RADIUS), atol=1e-6
    )


def test_the_square_round_the_circle_is_what_is_compared():
    """So neither the sampling nor the width of the margin outside the circle changes much."""
    images = job()
    wide = np.zeros((len(images), 3 * SIDE, 3 * SIDE))
    wide[:, SIDE : 2 * SIDE, SIDE : 2 * SIDE] = images
    cut, radius = around(wide, RADIUS)
    plain, same = around(images, RADIUS)
    assert radius == pytest.approx(same)
    np.testing.assert_allclose(relations(cut, radius), relations(plain, same), atol=1e-6)


def test_the_window_follows_the_mask_where_it_is_tight_and_the_protein_where_it_is_wide():
    tight = job(views=0)  # what fills the whole circle
    # The same mask round a small protein, and classes of noise beside it.
    small = [
        spots(np.array([[a, b] for a in (-2, 2) for b in (-1, 2)]) * k) for k in (0.8, 0.9, 1, 1.1)
    ]
    wide = np.concatenate([small, job(views=0, noise=4)])
    of_tight, of_wide = (window(relations(images, RADIUS), RADIUS, 200) for images in (tight, wide))
    assert of_tight == 2 * round(1.05 * RADIUS)
    assert of_wide < 0.7 * of_tight
    assert window(relations(tight, RADIUS), RADIUS, 30) == 30  # no larger than the image
    assert window(relations(np.zeros_like(tight), RADIUS), RADIUS, 60) == 60  # nothing is known
