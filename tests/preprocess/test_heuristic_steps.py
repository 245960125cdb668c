"""The steps of the default masks, each against an independent oracle of its published form."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.masks.heuristic.cues import barrier_distance, side_distances
from preprocess.masks.heuristic.refine import (
    affinities,
    first_probability,
    judgement,
    refined,
    region_barrier,
)
from preprocess.masks.heuristic.regions import (
    MOST_REGIONS,
    colour_distances,
    neighbours,
    region_means,
    segment,
    sorted_edges,
)
from preprocess.masks.heuristic.smooth import follow, guided_lines
from tests.preprocess.support import photo

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]

SEEDS = st.integers(0, 2**32 - 1)


def lab_noise(seed: int, height: int, width: int, *, levels: int = 6) -> Floats:
    """Pixels whose differences are whole steps of 5: far more than the sorting tells apart."""
    rng = np.random.default_rng(seed)
    return (5 * rng.integers(0, levels, (height, width, 3))).astype(np.float32)


def plain_segments(first: Labels, second: Labels, weight: Floats, pixels: int, k: float) -> set:
    """Felzenszwalb and Huttenlocher's algorithm 1 with sets and their own minimum spanning trees.

    Int(C) is computed from its definition, the largest edge of the component's spanning tree.
    """
    parts = {pixel: frozenset([pixel]) for pixel in range(pixels)}
    inner = dict.fromkeys(parts.values(), 0.0)
    for a, b, w in zip(first.tolist(), second.tolist(), weight.tolist(), strict=True):
        one, two = parts[a], parts[b]
        if one == two or w > min(inner[one] + k / len(one), inner[two] + k / len(two)):
            continue
        joined = one | two
        inner[joined] = max(inner[one], inner[two], w)
        parts.update(dict.fromkeys(joined, joined))
    return set(parts.values())


def as_sets(labels: Labels) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


@given(SEEDS, st.sampled_from([0.0, 4.0, 15.0, 60.0]))
@settings(max_examples=30, deadline=None)
def test_regions_are_those_of_the_published_algorithm(seed: int, scale: float) -> None:
    lab = lab_noise(seed, 9, 11, levels=3)
    edges = sorted_edges(lab)
    assert len(edges[0]) == 9 * 10 + 8 * 11 and (np.diff(edges[2]) >= 0).all()
    flat = lab.reshape(-1, 3)
    np.testing.assert_allclose(
        edges[2], np.linalg.norm(flat[edges[0]] - flat[edges[1]], axis=1), rtol=1e-6
    )
    labels, count = segment(*edges, 99, scale, 0)
    assert set(labels.tolist()) == set(range(count))
    assert as_sets(labels) == plain_segments(*edges, 99, scale)


@given(SEEDS, st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_no_region_is_smaller_than_asked(seed: int, min_size: int) -> None:
    labels, count = segment(*sorted_edges(lab_noise(seed, 20, 20)), 400, 5.0, min_size)
    assert np.bincount(labels, minlength=count).min() >= min_size
    grid = labels.reshape(20, 20)
    parts = [(grid == region).astype(np.uint8) for region in range(count)]
    pieces = sum(cv2.connectedComponents(part, connectivity=4)[0] - 1 for part in parts)
    assert pieces == count  # every region hangs together


def test_regions_never_exceed_what_later_steps_can_hold() -> None:
    labels, count = segment(*sorted_edges(lab_noise(0, 64, 64)), 4096, 0.0, 1)
    assert 1 < count <= MOST_REGIONS and labels.max() == count - 1


def test_a_larger_scale_and_a_larger_least_size_give_fewer_regions() -> None:
    pixels = cv2.resize(photo(3), (64, 64), interpolation=cv2.INTER_AREA)
    edges = sorted_edges(cv2.cvtColor(pixels, cv2.COLOR_RGB2Lab).astype(np.float32))
    by_scale = [segment(*edges, 4096, scale, 30)[1] for scale in (5.0, 500.0)]
    by_size = [segment(*edges, 4096, 10.0, size)[1] for size in (20, 60, 200)]
    assert by_scale[0] > by_scale[1]
    assert by_size == sorted(by_size, reverse=True) and by_size[0] > by_size[2]


@given(SEEDS)
@settings(max_examples=10, deadline=None)
def test_regions_are_measured_and_know_their_neighbours(seed: int) -> None:
    lab = lab_noise(seed, 12, 15)
    labels, count = segment(*sorted_edges(lab), 180, 10.0, 4)
    means = region_means(lab, labels, count)
    shared = np.zeros((count, count))
    grid = labels.reshape(12, 15)
    for one, two in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
        np.add.at(shared, (one, two), 1)
        np.add.at(shared, (two, one), 1)
    np.fill_diagonal(shared, 0)
    starts, others, sides = neighbours(labels, 15, count)
    for region in range(count):
        inside = lab.reshape(-1, 3)[labels == region]
        np.testing.assert_allclose(means[region], [*inside.mean(0), len(inside)], rtol=1e-5)
        row = slice(starts[region], starts[region + 1])
        np.testing.assert_array_equal(others[row], np.flatnonzero(shared[region]))
        np.testing.assert_array_equal(sides[row], shared[region][others[row]])
    expected = np.linalg.norm(means[:, None, :3] - means[None, :, :3], axis=2)
    np.testing.assert_allclose(colour_distances(means), expected, atol=1e-4)


def minimax_barrier(values: Floats) -> Floats:
    """Return an exact barrier distance: thresholds of all lower bounds, flooded from the border.

    For each lower bound, the least top of a path above that bound is found by repeated relaxation.
    """
    best = np.full(values.shape, np.inf, np.float32)
    for low in np.unique(values):
        allowed = values >= low
        top = np.full(values.shape, np.inf, np.float32)
        edge = np.zeros_like(allowed)
        edge[[0, -1]] = edge[:, [0, -1]] = True
        top[edge & allowed] = values[edge & allowed]
        for _ in range(values.size):
            padded = np.pad(top, 1, constant_values=np.inf)
            near = np.minimum.reduce(
                [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
            )
            relaxed = np.where(allowed, np.minimum(top, np.maximum(near, values)), np.inf)
            if np.array_equal(relaxed, top):
                break
            top = relaxed
        best = np.minimum(best, top - low)
    return best


def test_the_barrier_distance_is_never_below_the_exact_one_and_mostly_equal() -> None:
    planes = np.random.default_rng(0).integers(0, 8, (2, 14, 17)).astype(np.float32)
    scanned = [barrier_distance(plane[None]) for plane in planes]
    for found, plane in zip(scanned, planes, strict=True):
        exact = minimax_barrier(plane)
        # Raster scans see a path's own best extremes only: an upper bound by construction.
        assert (found >= exact).all()
        assert (found == exact).mean() > 0.7
    np.testing.assert_array_equal(barrier_distance(planes), scanned[0] + scanned[1])
    walled = np.pad(np.full((3, 3), 2.0, np.float32), 3)
    np.testing.assert_array_equal(barrier_distance(walled[None]), walled)


def test_the_barrier_of_regions_is_that_of_pixels_when_each_pixel_is_a_region() -> None:
    values = np.random.default_rng(1).integers(0, 5, (12, 13)).astype(np.float32)
    starts, others, _ = neighbours(np.arange(156, dtype=np.int32), 13, 156)
    rim = np.ones((12, 13), np.float32)
    rim[1:-1, 1:-1] = 0
    found = region_barrier(values.ravel(), rim.ravel(), starts, others).reshape(12, 13)
    exact = minimax_barrier(values)
    assert (found >= exact).all() and (found == exact).mean() > 0.7
    assert not found[rim > 0].any()


def test_the_distance_to_each_side_is_mahalanobis() -> None:
    rng = np.random.default_rng(2)
    lab = rng.normal(50, 12, (20, 24, 3)).astype(np.float32)
    means = rng.normal(50, 30, (7, 4)).astype(np.float32)
    sides = (lab[:3], lab[-3:], lab[:, :3], lab[:, -3:])
    expected = []
    for side in sides:
        colours = side.reshape(-1, 3).astype(np.float64)
        inverse = np.linalg.inv(np.cov(colours.T, bias=True) + 20 * np.eye(3))
        offset = means[:, :3] - colours.mean(0)
        expected.append(np.sqrt(np.einsum("ni,ij,nj->n", offset, inverse, offset)))
    np.testing.assert_allclose(side_distances(lab, means, 3), np.transpose(expected), rtol=1e-4)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_a_cue_becomes_a_probability_about_its_otsu_level(seed: int) -> None:
    rng = np.random.default_rng(seed)
    areas = rng.integers(1, 30, 40)
    levels = rng.integers(0, 256, 40)
    levels[:2] = 0, 255
    pixels = np.repeat(levels, areas).astype(np.uint8)
    level, _ = cv2.threshold(pixels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    cue = (7 + levels / 50).astype(np.float32)  # any scale: it is stretched to [0, 1] first
    for factor in (1.0, 1.3):
        found = first_probability(cue, areas.astype(np.float32), factor)
        above = levels / 255 > factor * (level + 0.5) / 255
        np.testing.assert_array_equal(found > 0.5, above)
        slope = np.log(found / (1 - found))[1] - np.log(found / (1 - found))[0]
        assert slope == pytest.approx(12, rel=0.02)  # from the least cue to the largest


def grid_world(colours: Floats) -> tuple:
    """A picture whose every pixel is a region: areas, rim, distances, kernel, rows, pull."""
    height, width = colours.shape[:2]
    count = height * width
    areas = np.ones(count, np.float32)
    rim = np.ones((height, width), np.float32)
    rim[1:-1, 1:-1] = 0
    rows = neighbours(np.arange(count, dtype=np.int32), width, count)
    distance = colour_distances(np.ascontiguousarray(colours.reshape(count, 3)))
    kernel, pull = affinities(distance, areas, *rows)
    return areas, rim.ravel(), distance, kernel, rows, pull


def test_refinement_completes_an_object_from_a_part_of_it_and_fills_its_hole() -> None:
    truth = np.zeros((12, 12), np.bool_)
    truth[3:9, 2:10] = True
    colours = np.where(truth[..., None], np.float32([60, 40, 30]), np.float32([50, 0, 0]))
    colours[5:7, 5:7] = [50, 0, 0]  # of the background's colour, but enclosed
    areas, rim, _, kernel, rows, pull = grid_world(colours.astype(np.float32))
    first = np.where(truth & (np.arange(12) < 6), 0.7, 0.3).astype(np.float32)
    first[4:8, 4:8] = 0.6
    start = first.ravel().copy()
    world = (areas, rim, rim, kernel, rows[0], rows[1], pull)
    np.testing.assert_array_equal(refined(start, *world, 0), start)
    found = refined(start, *world, 4).reshape(12, 12)
    ring = truth.copy()
    ring[5:7, 5:7] = False
    assert found[ring].min() > 0.6 and found[~truth].max() < 0.3
    assert found[5:7, 5:7].min() > 2 * found[~truth].max()
    assert 0 <= found.min() <= found.max() <= 1


def test_the_kernels_of_colour_and_neighbourhood_are_gaussians() -> None:
    colours = lab_noise(4, 5, 6)
    _, _, distance, kernel, (starts, others, sides), pull = grid_world(colours)
    far = distance >= 40  # five standard deviations: nothing
    np.testing.assert_allclose(kernel[~far], np.exp(-(distance[~far] ** 2) / 128), rtol=1e-5)
    assert not kernel[far & (distance > 0)].any()
    for a in range(30):
        for at in range(starts[a], starts[a + 1]):
            expected = sides[at] * np.exp(-(distance[a, others[at]] ** 2) / 288)
            assert pull[at] == pytest.approx(expected, rel=1e-4)


def test_judgement_measures_and_prefers_the_object() -> None:
    truth = np.zeros((12, 12), np.bool_)
    truth[3:9, 3:8] = True
    colours = np.where(truth[..., None], np.float32([70, 30, 0]), np.float32([40, 0, 0]))
    areas, rim, distance, kernel, rows, _ = grid_world(colours.astype(np.float32))
    y, x = np.mgrid[:12, :12]
    square = (((y + 0.5) / 12 - 0.5) ** 2 + ((x + 0.5) / 12 - 0.5) ** 2).astype(np.float32)
    choices = np.stack([truth, y < 6, (y + x) % 2 == 0]).reshape(3, -1)
    maps = np.where(choices, np.float32(0.9), np.float32(0.1))
    found = judgement(maps, areas, rim, square.ravel(), distance, kernel, *rows)
    step, likeness, border, spread, agreement = found.T
    assert step[0] == step.max() and likeness[0] == likeness.min() < 0.2
    np.testing.assert_allclose(border, [(rim * c).sum() / rim.sum() for c in choices], rtol=1e-5)
    np.testing.assert_allclose(
        spread, [np.sqrt(square.ravel()[c].mean()) for c in choices], rtol=1e-5
    )
    overlap = [[(a & b).sum() / (a | b).sum() for b in choices] for a in choices]
    np.testing.assert_allclose(agreement, np.mean(overlap, axis=1), rtol=1e-5)


def guided_filter(guide: Floats, values: Floats, radius: int, epsilon: float) -> Floats:
    found: Floats = follow(guided_lines(guide, values, radius, epsilon), guide)
    return found


def plain_guided_filter(guide: Floats, values: Floats, radius: int, epsilon: float) -> Floats:
    """The definition: a ridge regression in each window, then the mean over windows."""
    height, width = values.shape
    total, count = np.zeros((2, height, width))
    for y in range(height):
        for x in range(width):
            window = np.s_[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
            colours = guide[window].reshape(-1, 3).T.astype(np.float64)
            target = values[window].ravel().astype(np.float64)
            centred = colours - colours.mean(1, keepdims=True)
            spread = centred @ centred.T / len(target) + epsilon * np.eye(3)
            slope = np.linalg.solve(spread, centred @ (target - target.mean()) / len(target))
            total[window] += (slope @ centred + target.mean()).reshape(total[window].shape)
            count[window] += 1
    return np.clip(total / count, 0, 1)


def test_the_guided_filter_is_a_regression_in_every_window() -> None:
    rng = np.random.default_rng(5)
    guide, values = rng.random((12, 12, 3), np.float32), rng.random((12, 12), np.float32)
    found = guided_filter(guide, values, 2, 1e-2)
    np.testing.assert_allclose(found, plain_guided_filter(guide, values, 2, 1e-2), atol=2e-4)


def test_the_guided_filter_smooths_noise_and_keeps_the_edge() -> None:
    edge = np.full((64, 64), 0.3, np.float32)
    edge[:, 32:] = 0.7
    rng = np.random.default_rng(0)
    noisy = edge + 0.05 * rng.standard_normal(edge.shape, np.float32)
    smooth = guided_filter(np.repeat(edge[..., None], 3, axis=2), noisy, 4, 1e-3)
    assert np.abs(smooth - edge).mean() < 0.5 * np.abs(noisy - edge).mean()
    assert (smooth[:, 33] - smooth[:, 30]).mean() > 0.35
