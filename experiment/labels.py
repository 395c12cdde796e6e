"""Names beside the points of a scatter plot, placed so that they cover neither points nor each other."""

import math

_RADII = (10, 16, 26, 40, 58, 80)  # in points; beyond the second a thin line leads to the point
_ANGLES = (0, 180, 45, 135, -45, -135, 90, -90, 68, 112, -68, -112)
_MARKER = 6  # half the side of the square that a marker covers, in points
_LINE = 4  # the width of the strip kept clear around a line, in points


def label_points(axes, points, names, colors, style, avoid=()):
    """Names every point at the free spot nearest to it: greedy, because a dozen labels need no better.

    Args:
      axes: a matplotlib Axes whose limits and labels are final.
      points: (x, y) of each point, in data units.
      names: the text of each point.
      colors: the colour of each line from a point to its name, where the name stands apart.
      style: keyword arguments of the text.
      avoid: (x0, y0, x1, y1), straight lines along an axis that labels should not cross, in data units.
    """
    axes.figure.draw_without_rendering()  # lays the figure out, so that pixels mean something,
    axes.figure.set_layout_engine("none")  # and keeps it so: a new layout would move points away under their labels
    pixel = axes.figure.dpi / 72
    window = axes.get_window_extent()
    frame = (window.x0, window.y0, window.x1, window.y1)
    centers = [axes.transData.transform(point) for point in points]
    taken = [_box(x, y, 2 * _MARKER * pixel, 2 * _MARKER * pixel) for x, y in centers]
    for x0, y0, x1, y1 in avoid:
        (x0, y0), (x1, y1) = axes.transData.transform([(x0, y0), (x1, y1)])
        wide, high = abs(x1 - x0) + _LINE * pixel, abs(y1 - y0) + _LINE * pixel
        taken.append(_box((x0 + x1) / 2, (y0 + y1) / 2, wide, high))
    for point, center, name, color in zip(points, centers, names, colors, strict=True):
        text = axes.annotate(name, point, (0, 0), textcoords="offset points", va="center", **style)
        size = text.get_window_extent()
        rivals = [other for other in centers if other is not center]
        box, offset, side = free_spot(center, (size.width + 4 * pixel, size.height), taken, frame, rivals, pixel)
        text.set(position=offset, ha=side)
        taken.append(box)
        if math.hypot(*offset) > _RADII[1]:
            line = {"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 2, "shrinkB": 5}
            axes.annotate("", point, offset, textcoords="offset points", arrowprops=line)


def free_spot(center, size, taken, frame, rivals=(), pixel=1.0):
    """The candidate place for a label that covers least; of equals, one that no other point can be taken for.

    Args:
      center: (x, y) of the point.
      size: (width, height) of the label.
      taken: boxes (x0, y0, x1, y1) to keep clear of.
      frame: the box to stay in.
      rivals: (x, y) of the other points.
      pixel: pixels per point.

    Returns:
      The label's box, its offset from the point in points, and its horizontal alignment.
    """
    best = None
    for radius in _RADII:
        for angle in _ANGLES:
            dx, dy = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
            side = "center" if abs(angle) == 90 else "left" if dx > 0 else "right"
            shift = {"left": 0.5, "center": 0.0, "right": -0.5}[side] * size[0]
            box = _box(center[0] + dx * pixel + shift, center[1] + dy * pixel, *size)
            outside = size[0] * size[1] - overlap(box, frame)
            covered = outside + sum(overlap(box, other) for other in taken)
            mistaken = sum(_distance(box, rival) < _distance(box, center) for rival in rivals)
            line = [(center[0] + t * dx * pixel, center[1] + t * dy * pixel) for t in (0.3, 0.5, 0.7, 0.9)]
            mistaken += any(math.dist(spot, rival) < 1.5 * _MARKER * pixel for spot in line for rival in rivals)
            price = (round(covered), mistaken, radius)  # rounded: a rounding error covers nothing
            if best is None or price < best[0]:
                best = (price, box, (dx, dy), side)
    return best[1:]


def overlap(first, second) -> float:
    """The area that two boxes (x0, y0, x1, y1) share.

    >>> overlap((0, 0, 2, 2), (1, 1, 3, 3)), overlap((0, 0, 1, 1), (2, 0, 3, 1))
    (1, 0)
    """
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0, width) * max(0, height)


def _distance(box, point):
    x, y = point
    return math.hypot(max(box[0] - x, 0, x - box[2]), max(box[1] - y, 0, y - box[3]))


def _box(x, y, width, height):
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
