"""Pictures of contours: what is joined can be read from the pixels, as the paddles say, and nothing else touches."""

import numpy as np
import pytest

from tasks import contours
from tasks.contours import draw
from tasks.paddles import PUBLISHED, geometry, stamps

SETTINGS = [(16, 3, 2, 60), (32, 6, 6, 200), (32, 14, 5, 200), (48, 9, 4, 60), (64, 14, 5, 24), (128, 14, 8, 16)]


def random(seed=0, step=0):
    return np.random.Generator(np.random.Philox(key=[seed, step]))


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda setting: f"side{setting[0]}-length{setting[1]}")
def setting(request):
    """(side, contour_length, num_distractors, drawing)."""
    side, length, count, rows = request.param
    return side, length, count, draw(random(), rows, side, length, count)


def margins(drawing):
    """Half of the widest gap between two paddles of an image, which is the gap where they are in line."""
    gaps = np.linalg.norm(drawing.paddles[:, :, 1:, 0] - drawing.paddles[:, :, :-1, 1], axis=-1)
    return np.rint(np.nanmax(gaps, (1, 2)) / 2).astype(int)


def joined(image, reach):
    """Whether all white pixels, which are the dots', are reached from one in steps of `reach` rows and columns on ink."""
    ink, white = ({tuple(pixel) for pixel in np.argwhere(mask)} for mask in (image > 0, image == 255))
    seen, todo = set(), [next(iter(white))]
    while todo:
        row, column = todo.pop()
        near = {(row + i, column + j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)}
        todo += (near & ink) - seen
        seen |= near & ink
    return white <= seen


def test_the_pixels_alone_tell_every_label(setting):
    _, _, _, drawing = setting
    solved = [joined(*pair) for pair in zip(drawing.images, 2 * margins(drawing), strict=True)]
    np.testing.assert_array_equal(solved, drawing.labels)


def test_dots_are_where_the_labels_say(setting):
    """From the paddles: which contour starts at the first dot, and which one ends at the second."""
    _, length, _, drawing = setting
    starts, ends = drawing.paddles[:, :2, 0, 0], drawing.paddles[:, :2, length - 1, 1]
    begin = (starts == drawing.dots[:, :1]).all(-1)
    end = (ends == drawing.dots[:, 1:]).all(-1)
    assert (begin.sum(1) == 1).all() and (end.sum(1) == 1).all()
    np.testing.assert_array_equal((begin & end).any(1), drawing.labels)
    assert 0 < begin[:, 0].mean() < 1
    for image, dots in zip(drawing.images, drawing.dots, strict=True):
        for row, column in dots.astype(int):
            assert image[row, column] == 255


def test_contours_have_the_published_sizes(setting):
    side, length, count, drawing = setting
    sizes = geometry(side)[0]
    paddles = drawing.paddles.astype(float)
    assert paddles.shape == (len(drawing.images), 2 + count, length, 2, 2)
    real = ~np.isnan(paddles).any((-1, -2))
    assert real[:, :2].all()
    short = max(1, length // 3)
    assert set(real[:, 2:].sum(-1).ravel()) <= {0, short}  # all of it, or no room for it
    assert real[:, 2:].any()
    np.testing.assert_allclose(
        np.linalg.norm(paddles[..., 1, :] - paddles[..., 0, :], axis=-1)[real], sizes.paddle, rtol=1e-5
    )
    apart = np.linalg.norm(paddles[:, 0, 0, 0] - paddles[:, 1, 0, 0], axis=-1)
    assert (abs(apart - sizes.seed_distance) < 0.75).all()  # two hinges on a grid of quarters of a pixel
    along = paddles[..., 1, :] - paddles[..., 0, :]
    cosines = (along[:, :, 1:] * along[:, :, :-1]).sum(-1) / sizes.paddle**2
    assert np.nanmin(cosines) > np.cos(np.pi / 2 / sizes.continuity) - 1e-5
    assert set(margins(drawing)) <= {each.margin for each in geometry(side)}


def test_contours_do_not_cross(setting):
    """Points on paddles, and on the way from one to the next, are apart from those of every other contour."""
    _, _, _, drawing = setting
    at = np.linspace(0, 1, 6)[:, None, None]
    for paddles, margin in zip(drawing.paddles[:12].astype(float), margins(drawing), strict=False):
        lines = [each[~np.isnan(each).any((-1, -2))].reshape(-1, 2) for each in paddles]
        points = [((1 - at) * line[:-1] + at * line[1:]).reshape(-1, 2) for line in lines if len(line)]
        for i, one in enumerate(points):
            for other in points[:i]:
                assert np.linalg.norm(one[:, None] - other, axis=-1).min() > margin


def test_labels_are_balanced_and_no_share_of_ink_tells_them():
    drawing = draw(random(3), 601, 32, 9, 4)
    assert abs(2 * drawing.labels.sum() - 601) == 1
    ink = (drawing.images > 0).sum((1, 2))
    means = [ink[drawing.labels == label].mean() for label in (0, 1)]
    assert abs(means[0] - means[1]) < 4 * ink.std() / 150**0.5 / 2**0.5  # four standard errors


def test_the_edge_stays_black(setting):
    side, _, _, drawing = setting
    assert drawing.images.shape[1:] == (side, side) and drawing.images.dtype == np.uint8
    inside = drawing.images.copy()
    inside[:, 1:-1, 1:-1] = 0
    assert not inside.any()


def test_images_share_no_beginning():
    """Versions of an image are copies of each other; of each image one is kept."""
    starts = draw(random(4), 400, 32, 9, 0).paddles[:, :2, 0, 0]
    assert len({row.tobytes() for row in starts}) == 400


def test_is_a_function_of_the_generator_alone():
    first, again, other = (draw(random(seed), 8, 32, 6, 2) for seed in (1, 1, 2))
    for name in first._fields:
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not (first.images == other.images).all()


def chi_squared(counts, angles, continuity, power):
    """How far counts of bends to either side are from the power law of their cosine; none may be where it gives none."""
    shares = np.cos(np.minimum(continuity * angles, np.pi / 2)) ** power
    possible = shares > 1e-9
    assert not counts[~possible].any()
    shares = np.where(angles == 0, 1, 2) * shares  # to the left and to the right
    wanted = counts.sum() * (shares / shares.sum())[possible]
    return ((counts[possible] - wanted) ** 2 / wanted).sum()


@pytest.mark.parametrize(
    "side, rows, reach, limit", [(63, 5000, 9, 24.3), (127, 4000, 14, 18.5), (255, 3000, 23, 18.5)]
)
def test_bends_are_as_frequent_as_published(side, rows, reach, limit):
    """The settings of 32, 64 and 128 on larger images: the first bend, where nothing of the other contour is near.

    Chi squared is below what chance exceeds once in a thousand; for the cosine itself and for its cube it is above.
    """
    ends, sizes = draw(random(), rows, side, 2, 0).paddles.astype(float), geometry(side)[0]
    last = ends[:, 0, 0, 1]
    free = (np.linalg.norm(ends[:, 1, 0] - last[:, None], axis=-1) > reach).all(1)
    assert free.mean() > 0.4
    along = np.diff(ends[free, 0], axis=2)[:, :, 0] / sizes.paddle
    turned = np.arccos(np.clip((along[:, 0] * along[:, 1]).sum(1), -1, 1))
    counts = np.bincount(np.rint(turned * 16 / np.pi).astype(int), minlength=17)
    angles = np.pi / 16 * np.arange(17)
    found = [chi_squared(counts, angles, sizes.continuity, power) for power in (1, 2, 3)]
    assert found[1] < limit < min(found[0], found[2])


@pytest.mark.parametrize("sizes", [sizes for side in PUBLISHED for sizes in PUBLISHED[side]])
def test_bends_stay_so_and_no_direction_becomes_frequent(sizes):
    """From bend to bend: paddles that are all as likely are so again after a bend, whose law is the published one."""
    found = stamps(sizes)
    weights = found.weights / found.weights.sum(1, keepdims=True)
    angles = np.minimum(found.bends, 32 - found.bends) * np.pi / 16
    law = np.cos(sizes.continuity * angles) ** 2
    np.testing.assert_allclose(weights.mean(0), law / law.sum(), rtol=1e-4)
    flow = np.zeros(len(weights))
    for paddle, shares in enumerate(weights):
        phase, direction = divmod(paddle, 32)
        row, column = (np.array(divmod(phase, 4)) + found.steps[direction]) % 4
        flow[(4 * row + column) * 32 + (direction + found.bends) % 32] += shares
    np.testing.assert_allclose(flow, 1, rtol=1e-4)


def test_every_shorter_contour_is_there_where_there_is_room():
    drawing = draw(random(), 40, 128, 6, 4)
    assert (~np.isnan(drawing.paddles[:, 2:, 0, 0, 0])).mean() > 0.95


@pytest.mark.parametrize("length", [1, 128])
def test_refuses_contours_it_cannot_number(length):
    with pytest.raises(ValueError, match=f"contour_length: wanted 2 to 127 paddles, got {length}"):
        draw(random(), 1, 32, length, 0)


def test_gives_up_where_nothing_fits(monkeypatch):
    monkeypatch.setattr(contours, "HOPELESS", 100)
    with pytest.raises(ValueError, match="no two contours of 60 paddles find room on 32 x 32 pixels"):
        draw(random(), 1, 32, 60, 0)
