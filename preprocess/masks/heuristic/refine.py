"""From a cue to a foreground probability per region, and a judgement without labels of the result.

Refinement follows GrabCut (Rother et al., SIGGRAPH 2004): colour models of foreground and
background and a smoothness between neighbours, in turns. Here the models are kernel densities over
regions, and a mean field (Kraehenbuehl and Koltun, NeurIPS 2011, with neighbours only) takes the
place of the graph cut: probabilities stay soft and a round takes 0.05 ms.
"""

from __future__ import annotations

import math

import numpy as np

from harl_fast.jit import FAST_SUMS, njit

SHARPNESS = np.float32(12.0)
"""Slope that turns a cue in [0, 1] into a first probability about its level."""
BANDWIDTH = np.float32(8.0)
"""Standard deviation of the colour models' kernel, Lab units."""
FLOOR = np.float32(1e-3)
"""Density added to both colour models: what neither has seen is no evidence."""
CERTAIN = np.float32(4.0)
"""The colour models' log ratio is cut here, in nats."""
ANCHOR = np.float32(2.0)
"""Weight of the first probability against the colour models, in nats at certainty."""
SMOOTH, SMOOTH_BANDWIDTH = np.float32(1.0), np.float32(12.0)
"""Pull between neighbours of one colour, in nats, and its fall with Lab distance."""
SWEEPS = 3
CONNECTED = np.float32(0.25)
"""Share of each round's result replaced by its barrier distance to the border: background-coloured
holes inside an object fill, object-coloured regions at the border fade."""


@njit("float32(float32[::1], float32[::1])", cache=True)
def _otsu(values, areas):
    """Return Otsu's threshold of values in [0, 1] that cover the given areas."""
    weight = np.zeros(256, np.float64)
    for region in range(len(values)):
        weight[min(max(int(values[region] * 255 + np.float32(0.5)), 0), 255)] += areas[region]
    total = weight.sum()
    mean = (weight * np.arange(256)).sum() / total
    share, sum_below, best, level = 0.0, 0.0, -1.0, 0
    for cut in range(255):
        share += weight[cut] / total
        sum_below += cut * weight[cut] / total
        if share <= 0 or share >= 1:
            continue
        between = (mean * share - sum_below) ** 2 / (share * (1 - share))
        if between > best + 1e-9:
            best, level = between, cut
    return np.float32((level + 0.5) / 255)


@njit("float32[::1](float32[::1], float32[::1], float32)", cache=True)
def first_probability(cue, areas, factor):
    """Return a (N,) cue as probability: a sigmoid about ``factor`` times its Otsu level."""
    low, high = cue.min(), cue.max()
    scaled = (cue - low) / max(high - low, np.float32(1e-6))
    level = _otsu(scaled, areas) * factor
    result = np.empty(len(cue), np.float32)
    for region in range(len(cue)):
        result[region] = 1 / (1 + math.exp(-SHARPNESS * (scaled[region] - level)))
    return result


@njit(
    "Tuple((float32[:, ::1], float32[::1]))(float32[:, ::1], float32[::1], int32[::1],"
    "int32[::1], float32[::1])",
    cache=True,
)
def affinities(distance, areas, starts, others, sides):
    """Return the (N, N) kernel of the colour models and the pulls along the neighbour rows."""
    count = len(areas)
    kernel = np.empty((count, count), np.float32)
    scale = -1 / (2 * BANDWIDTH * BANDWIDTH)
    for a in range(count):
        kernel[a, a] = 1
        for b in range(a):
            step = distance[a, b]
            kernel[a, b] = math.exp(scale * step * step) if step < 5 * BANDWIDTH else 0.0
            kernel[b, a] = kernel[a, b]
    pull = np.empty(len(others), np.float32)
    scale = -1 / (2 * SMOOTH_BANDWIDTH * SMOOTH_BANDWIDTH)
    for a in range(count):
        for at in range(starts[a], starts[a + 1]):
            step = distance[a, others[at]]
            pull[at] = SMOOTH * sides[at] / math.sqrt(areas[a]) * math.exp(scale * step * step)
    return kernel, pull


@njit("float32[::1](float32[::1], float32[::1], int32[::1], int32[::1])", cache=True)
def region_barrier(values, rim, starts, others):
    """Return the barrier distance of (N,) region values to the border, by four sweeps.

    rim: (N,) pixels on the picture's border; a region with any has distance 0.
    """
    count = len(values)
    high, low = values.copy(), values.copy()
    distance = np.full(count, np.float32(np.inf))
    for a in range(count):
        if rim[a] > 0:
            distance[a] = 0
    for sweep in range(4):
        for i in range(count):
            a = i if sweep % 2 == 0 else count - 1 - i
            for at in range(starts[a], starts[a + 1]):
                b = others[at]
                top, bottom = max(high[b], values[a]), min(low[b], values[a])
                if distance[b] < np.inf and top - bottom < distance[a]:
                    distance[a], high[a], low[a] = top - bottom, top, bottom
    return distance


@njit(
    "float32[::1](float32[::1], float32[::1], float32[::1], float32[::1], float32[:, ::1],"
    "int32[::1], int32[::1], float32[::1], int64)",
    cache=True,
    fastmath=FAST_SUMS,
)
def refined(first, areas, ring, rim, kernel, starts, others, pull, rounds):
    """Return the (N,) probability after ``rounds`` of colour models and smoothing.

    first: (N,) probability to start from. areas, ring, rim: (N,) pixels in all, in the picture's
    outer ring (counted as background once more), on its very border.
    """
    count = len(first)
    result = first.copy()
    field = np.empty(count, np.float32)
    for _ in range(rounds):
        inside, outside = np.float32(1e-6), np.float32(1e-6)
        front, back = result * areas, (1 - result) * areas + ring
        for a in range(count):
            inside += front[a]
            outside += back[a]
        for a in range(count):
            object_, ground = np.float32(0), np.float32(0)
            for b in range(count):
                object_ += kernel[a, b] * front[b]
                ground += kernel[a, b] * back[b]
            ratio = math.log((object_ / inside + FLOOR) / (ground / outside + FLOOR))
            field[a] = min(max(ratio, -CERTAIN), CERTAIN) + ANCHOR * (2 * first[a] - 1)
            result[a] = 1 / (1 + math.exp(-field[a]))
        for _ in range(SWEEPS):
            for a in range(count):
                total = field[a]
                for at in range(starts[a], starts[a + 1]):
                    total += pull[at] * (2 * result[others[at]] - 1)
                result[a] = 1 / (1 + math.exp(-total))
        result += CONNECTED * (region_barrier(result, rim, starts, others) - result)
    return result


FIGURES = 5
"""Figures of `judgement` for each map."""


@njit(
    "Tuple((float64, float64))(boolean[::1], float32[:, ::1], int32[::1], int32[::1],float32[::1])",
    cache=True,
)
def _steps(chosen, distance, starts, others, sides):
    """Return the mean colour step across a choice's outline, and between all neighbours."""
    step, length, step_all, length_all = 0.0, 1e-6, 0.0, 1e-6
    for a in range(len(chosen)):
        for at in range(starts[a], starts[a + 1]):
            edge = sides[at] * distance[a, others[at]]
            step_all, length_all = step_all + edge, length_all + sides[at]
            if chosen[a] != chosen[others[at]]:
                step, length = step + edge, length + sides[at]
    return step / length, step_all / length_all


@njit("float64(boolean[::1], float32[::1], float32[:, ::1])", cache=True, fastmath=FAST_SUMS)
def _likeness(chosen, areas, kernel):
    """Return the Bhattacharyya coefficient of a choice's colours and those of the rest."""
    both, front_sum, back_sum = 0.0, 1e-9, 1e-9
    taken = np.zeros(len(chosen), np.float32)
    for a in range(len(chosen)):
        if chosen[a]:
            taken[a] = areas[a]
    for a in range(len(chosen)):
        front, every = np.float32(0), np.float32(0)
        for b in range(len(chosen)):
            front += kernel[a, b] * taken[b]
            every += kernel[a, b] * areas[b]
        back = max(every - front, np.float32(0))
        front_sum += front * areas[a]
        back_sum += back * areas[a]
        both += math.sqrt(front * back) * areas[a]
    return both / math.sqrt(front_sum * back_sum)


@njit(
    "float32[:, ::1](float32[:, ::1], float32[::1], float32[::1], float32[::1], float32[:, ::1],"
    "float32[:, ::1], int32[::1], int32[::1], float32[::1])",
    cache=True,
)
def judgement(maps, areas, rim, square, distance, kernel, starts, others, sides):
    """Return (M, 5) figures of how much each of M (M, N) maps, cut by Otsu, looks like an object.

    areas, rim, square: (N,) pixels, pixels on the picture's border, mean square distance from the
    centre in image sides. Figures: log ratio of the mean colour step across the outline to that
    between all neighbours; likeness of the colours inside and outside (Bhattacharyya); share of
    the border taken; root mean square distance from the centre; mean overlap (IoU) with all maps.
    """
    figures = np.zeros((len(maps), FIGURES), np.float32)
    chosen = np.zeros(maps.shape, np.bool_)
    for m in range(len(maps)):
        chosen[m] = maps[m] > _otsu(maps[m], areas)
        across, anywhere = _steps(chosen[m], distance, starts, others, sides)
        figures[m, 0] = math.log((across + 0.1) / (anywhere + 0.1))
        figures[m, 1] = _likeness(chosen[m], areas, kernel)
        taken = chosen[m] * areas
        figures[m, 2] = (chosen[m] * rim).sum() / rim.sum()
        figures[m, 3] = math.sqrt((taken * square).sum() / max(taken.sum(), 1.0))
    for m in range(len(maps)):
        for k in range(len(maps)):
            both, either = 0.0, 1e-6
            for a in range(len(areas)):
                if chosen[m, a] or chosen[k, a]:
                    either += areas[a]
                if chosen[m, a] and chosen[k, a]:
                    both += areas[a]
            figures[m, 4] += both / either / len(maps)
    return figures
