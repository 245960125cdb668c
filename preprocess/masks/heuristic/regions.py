"""Regions of a small picture: graph-based segmentation, their colours, areas and neighbours.

Felzenszwalb and Huttenlocher, "Efficient graph-based image segmentation", IJCV 2004. Kernels call
kernels of their own file only: numba's cache on disk checks a function's own file and no other.
"""

from __future__ import annotations

import numpy as np

from harl_fast.jit import FAST_SUMS, njit

MOST_REGIONS = 250
"""A finer segmentation is merged further: later steps take memory and time by its square."""
STEP = 8
"""Edge weights are sorted in steps of 1 / this Lab unit: below what 8-bit pixels tell apart."""
LEVELS = 2048


@njit("int32(int32[::1], int32)", cache=True)
def _root(parent, node):
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit("Tuple((int32[::1], int32[::1], float32[::1]))(float32[:, :, ::1])", cache=True)
def sorted_edges(lab):
    """Return the 4-connected pixel pairs of (H, W, 3) Lab pixels by rising colour difference.

    Two (E,) int32 arrays of pixel numbers, row by row, and their (E,) float32 differences.
    """
    height, width = lab.shape[0], lab.shape[1]
    count = height * (width - 1) + (height - 1) * width
    ends = np.empty((count, 2), np.int32)
    weight = np.empty(count, np.float32)
    place = np.zeros(LEVELS + 1, np.int32)
    edge = 0
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0)):
                if y + dy >= height or x + dx >= width:
                    continue
                square = np.float32(0)
                for channel in range(3):
                    step = lab[y, x, channel] - lab[y + dy, x + dx, channel]
                    square += step * step
                ends[edge, 0], ends[edge, 1] = y * width + x, (y + dy) * width + x + dx
                weight[edge] = np.sqrt(square)
                place[min(int(weight[edge] * STEP), LEVELS - 1) + 1] += 1
                edge += 1
    for level in range(LEVELS):
        place[level + 1] += place[level]
    first, second = np.empty(count, np.int32), np.empty(count, np.int32)
    ordered = np.empty(count, np.float32)
    for edge in range(count):
        level = min(int(weight[edge] * STEP), LEVELS - 1)
        at = place[level]
        place[level] += 1
        first[at], second[at], ordered[at] = ends[edge, 0], ends[edge, 1], weight[edge]
    return first, second, ordered


@njit("int64(int32[::1], int32[::1], float32[::1], int32[::1], int32[::1], float32)", cache=True)
def _grow(first, second, weight, parent, size, scale):
    """Join regions whose edge is no stronger than what is within both; return how many joined."""
    limit = np.full(len(parent), scale, np.float32)
    joined = 0
    for edge in range(len(first)):
        a, b = _root(parent, first[edge]), _root(parent, second[edge])
        if a != b and weight[edge] <= min(limit[a], limit[b]):
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
            limit[a] = weight[edge] + scale / size[a]
            joined += 1
    return joined


@njit("int64(int32[::1], int32[::1], int32[::1], int32[::1], float32)", cache=True)
def _absorb(first, second, parent, size, least):
    """Join regions under ``least`` pixels to their closest neighbour; return how many joined."""
    joined = 0
    for edge in range(len(first)):
        a, b = _root(parent, first[edge]), _root(parent, second[edge])
        if a != b and min(size[a], size[b]) < least:
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
            joined += 1
    return joined


@njit(
    "Tuple((int32[::1], int64))(int32[::1], int32[::1], float32[::1], int64, float32, float32)",
    cache=True,
)
def segment(first, second, weight, pixels, scale, min_size):
    """Return the (pixels,) int32 region of every pixel, and how many regions there are.

    Edges as from `sorted_edges`. scale: the paper's k, Lab units times pixels: larger regions for
    a larger one. Regions under ``min_size`` pixels join the neighbour of the closest colour, and
    so does the next larger size until at most `MOST_REGIONS` are left.
    """
    parent, size = np.empty(pixels, np.int32), np.ones(pixels, np.int32)
    for pixel in range(pixels):
        parent[pixel] = pixel
    regions = pixels - _grow(first, second, weight, parent, size, scale)
    least = min_size
    regions -= _absorb(first, second, parent, size, least)
    while regions > MOST_REGIONS:
        least = max(least, np.float32(1)) * np.float32(1.5)
        regions -= _absorb(first, second, parent, size, least)
    name = np.full(pixels, -1, np.int32)
    labels = np.empty(pixels, np.int32)
    count = 0
    for pixel in range(pixels):
        root = _root(parent, np.int32(pixel))
        if name[root] < 0:
            name[root] = count
            count += 1
        labels[pixel] = name[root]
    return labels, count


@njit("float32[:, ::1](float32[:, :, ::1], int32[::1], int64)", cache=True, fastmath=FAST_SUMS)
def region_means(planes, labels, count):
    """Return (count, C + 1): each region's mean of (H, W, C) planes, and its area in pixels."""
    channels = planes.shape[2]
    flat = planes.reshape(-1, channels)
    means = np.zeros((count, channels + 1), np.float32)
    for pixel in range(len(flat)):
        region = labels[pixel]
        for channel in range(channels):
            means[region, channel] += flat[pixel, channel]
        means[region, channels] += 1
    for region in range(count):
        for channel in range(channels):
            means[region, channel] /= means[region, channels]
    return means


@njit("Tuple((int32[::1], int32[::1], float32[::1]))(int32[::1], int64, int64)", cache=True)
def neighbours(labels, width, count):
    """Return who touches whom as sparse rows: (count + 1,) starts, regions, shared pixel sides."""
    shared = np.zeros((count, count), np.float32)
    for pixel in range(len(labels)):
        a = labels[pixel]
        if (pixel + 1) % width and labels[pixel + 1] != a:
            shared[a, labels[pixel + 1]] += 1
            shared[labels[pixel + 1], a] += 1
        if pixel + width < len(labels) and labels[pixel + width] != a:
            shared[a, labels[pixel + width]] += 1
            shared[labels[pixel + width], a] += 1
    starts = np.zeros(count + 1, np.int32)
    for a in range(count):
        starts[a + 1] = starts[a]
        for b in range(count):
            starts[a + 1] += shared[a, b] > 0
    others = np.empty(starts[count], np.int32)
    sides = np.empty(starts[count], np.float32)
    at = 0
    for a in range(count):
        for b in range(count):
            if shared[a, b] > 0:
                others[at], sides[at] = b, shared[a, b]
                at += 1
    return starts, others, sides


@njit("float32[:, ::1](float32[:, ::1])", cache=True)
def colour_distances(means):
    """Return the (N, N) Euclidean distances of the first three columns of (N, C) means."""
    count = len(means)
    distance = np.zeros((count, count), np.float32)
    for a in range(count):
        for b in range(count):
            first = means[a, 0] - means[b, 0]
            second = means[a, 1] - means[b, 1]
            third = means[a, 2] - means[b, 2]
            distance[a, b] = np.sqrt(first * first + second * second + third * third)
    return distance
