"""A matplotlib figure as plain data that the report's own script draws: axes, marks, ticks.

Everything is in data coordinates, so that the script can zoom with fresh ticks and tell values. What a figure may hold:
lines, scatters, bars and other patches, filled areas, segments, images and meshes, texts. Anything else is counted and
named, so that nothing is missing in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Mark = dict[str, Any]
DIGITS = 6
MOST_POINTS = 4000
MOST_CELLS = 160
COLOURS = 64


def charts(figure: Figure) -> list[dict[str, Any]]:
    """One entry per axes that shows data; colour bars become the scale of their image."""
    figure.draw_without_rendering()
    bars = {id(ax): ax for ax in figure.axes if _is_colour_bar(ax)}
    title = figure.get_suptitle() if hasattr(figure, "get_suptitle") else ""
    found = [_chart(ax, title) for ax in figure.axes if id(ax) not in bars and ax.get_visible()]
    labels = [_colour_label(ax) for ax in bars.values()]
    images = [mark for chart in found for mark in chart["marks"] if mark["type"] == "image"]
    for mark, label in zip(images, labels, strict=False):
        mark["unit"] = label
    return [chart for chart in found if chart["marks"]]


def _chart(ax: Axes, title: str) -> dict[str, Any]:
    box = ax.get_position()
    marks: list[Mark] = []
    unknown: list[str] = []
    for artist in sorted(_artists(ax), key=lambda artist: artist.get_zorder()):
        if not artist.get_visible():
            continue
        kind = type(artist).__name__
        try:
            drawn = [mark for mark in _marks(ax, artist) if mark]
        except (ValueError, TypeError, AttributeError, NotImplementedError):
            drawn = []
            unknown.append(kind)
        marks += drawn
    return {
        "title": _plain(ax.get_title() or ax.get_title(loc="left") or title),
        "width": round(float(box.width), 3),
        "height": round(float(box.height), 3),
        "x": _axis(ax.xaxis, ax.get_xlim(), ax.get_xlabel(), ax.get_xscale()),
        "y": _axis(ax.yaxis, ax.get_ylim(), ax.get_ylabel(), ax.get_yscale()),
        "marks": marks,
        "unknown": sorted(set(unknown)),
    }


def _artists(ax: Axes) -> Iterator[Any]:
    yield from ax.lines
    yield from ax.collections
    yield from ax.patches
    yield from ax.images
    yield from ax.texts


def _marks(ax: Axes, artist: Any) -> Iterator[Mark]:
    from matplotlib.collections import LineCollection, PathCollection, QuadMesh
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.text import Text

    if isinstance(artist, Line2D):
        yield _line(ax, artist)
    elif isinstance(artist, PathCollection):
        yield _points(ax, artist)
    elif isinstance(artist, LineCollection):
        yield _segments(ax, artist)
    elif isinstance(artist, QuadMesh):
        yield _mesh(artist)
    elif isinstance(artist, AxesImage):
        yield _image(artist)
    elif isinstance(artist, Patch):
        yield _patch(ax, artist)
    elif isinstance(artist, Text):
        yield _text(ax, artist)
    else:
        yield _areas(ax, artist)


def _line(ax: Axes, line: Any) -> Mark:
    xs, ys = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    across, along = _in_data(ax, line)
    look = {
        "label": _label(line),
        "colour": _hex(line.get_color()),
        "width": round(float(line.get_linewidth()), 2),
        "dash": _dash(line),
        "alpha": _alpha(line),
    }
    if len(xs) and not across and along:
        return {"type": "hline", "at": _number(ys[0]), **look}
    if len(xs) and across and not along:
        return {"type": "vline", "at": _number(xs[0]), **look}
    if not len(xs) or not (across and along):
        return {}
    style = str(line.get_drawstyle())
    marker = line.get_marker() not in (None, "None", "none", "", " ")
    drawn = line.get_linestyle() not in ("None", "none", "", " ")
    xs, ys = _thinned(xs, ys)
    return {
        "type": "line",
        "x": _numbers(xs),
        "y": _numbers(ys),
        "step": style.removeprefix("steps-") if style.startswith("steps") else "",
        "marker": marker,
        "drawn": drawn,
        **look,
    }


def _points(ax: Axes, collection: Any) -> Mark:
    offsets: Any = np.ma.filled(np.ma.asarray(collection.get_offsets(), float), np.nan)
    colours = [_hex(colour) for colour in collection.get_facecolors()] or [
        _hex(colour) for colour in collection.get_edgecolors()
    ]
    sizes = collection.get_sizes()
    xs, ys = _thinned(offsets[:, 0], offsets[:, 1])
    many = len(set(colours)) > 1 and len(colours) == len(xs)
    return {
        "type": "points",
        "x": _numbers(xs),
        "y": _numbers(ys),
        "label": _label(collection),
        "colour": colours[0] if colours else "#888888",
        "colours": colours if many else None,
        "radius": round(math.sqrt(float(sizes[0])) / 2, 2) if len(sizes) else 3,
        "alpha": _alpha(collection),
    }


def _segments(ax: Axes, collection: Any) -> Mark:
    to_data = collection.get_transform() - ax.transData
    lines = [
        to_data.transform(np.asarray(segment, float)) for segment in collection.get_segments() if len(segment)
    ]
    colours = collection.get_colors()
    return {
        "type": "segments",
        "lines": [[_numbers(line[:, 0]), _numbers(line[:, 1])] for line in lines[:MOST_POINTS]],
        "label": _label(collection),
        "colour": _hex(colours[0]) if len(colours) else "#888888",
        "width": round(float(np.ravel(collection.get_linewidths())[0]), 2),
        "alpha": _alpha(collection),
    }


def _areas(ax: Axes, collection: Any) -> Mark:
    paths = collection.get_paths()
    faces = collection.get_facecolors()
    to_data = collection.get_transform() - ax.transData
    outlines = [to_data.transform(ring) for path in paths for ring in path.to_polygons() if len(ring) > 2]
    if not outlines or not len(faces):
        return {}
    return {
        "type": "area",
        "rings": [[_numbers(ring[:, 0]), _numbers(ring[:, 1])] for ring in outlines],
        "label": _label(collection),
        "colour": _hex(faces[0]),
        "alpha": round(float(faces[0][3]), 3) if len(faces[0]) > 3 else 1.0,
    }


def _patch(ax: Axes, patch: Any) -> Mark:
    from matplotlib.patches import Rectangle

    face = patch.get_facecolor()
    filled = patch.get_fill() and face[3] > 0
    look = {
        "label": _label(patch),
        "colour": _hex(face if filled else patch.get_edgecolor()),
        "alpha": round(float(face[3]), 3) if filled else 1.0,
        "filled": bool(filled),
    }
    if isinstance(patch, Rectangle) and patch.get_angle() == 0 and all(_in_data(ax, patch)):
        x, y, width, height = (float(v) for v in (*patch.get_xy(), patch.get_width(), patch.get_height()))
        if not all(map(math.isfinite, (x, y, width, height))):
            return {}
        return {"type": "bar", "box": [_number(v) for v in (x, y, x + width, y + height)], **look}
    to_data = patch.get_transform() - ax.transData
    rings = [to_data.transform(ring) for ring in patch.get_path().to_polygons(closed_only=bool(filled))]
    rings = [ring for ring in rings if len(ring) > 1 and np.isfinite(ring).all()]
    if not rings:
        return {}
    return {"type": "area", "rings": [[_numbers(ring[:, 0]), _numbers(ring[:, 1])] for ring in rings], **look}


def _image(image: Any) -> Mark:
    values: Any = np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)
    if values.ndim != 2:
        raise NotImplementedError("an image of colours has no values")
    left, right, bottom, top = (float(v) for v in image.get_extent())
    ends = (top, bottom) if image.origin == "upper" else (bottom, top)
    return _cells(image, values, (left, right, *ends))


def _mesh(mesh: Any) -> Mark:
    values: Any = np.ma.filled(np.ma.asarray(mesh.get_array(), float), np.nan)
    corners = np.asarray(mesh.get_coordinates(), float)
    values = values.reshape(corners.shape[0] - 1, corners.shape[1] - 1)
    x, y = corners[0, :, 0], corners[:, 0, 1]
    return _cells(mesh, values, (float(x[0]), float(x[-1]), float(y[0]), float(y[-1])))


def _cells(image: Any, values: Any, extent: tuple[float, float, float, float]) -> Mark:
    """extent: x of the first and last column's outer edge, then y of the rows'; both come out rising.

    Large images are averaged over blocks, which is said.
    """
    left, right, first, last = extent
    values = values[:, ::-1] if left > right else values
    values = values[::-1] if first > last else values
    extent = (min(left, right), max(left, right), min(first, last), max(first, last))
    rows, columns = values.shape
    blocks = max(1, -(-max(rows, columns) // MOST_CELLS))
    if blocks > 1:
        padded = np.full((-(-rows // blocks) * blocks, -(-columns // blocks) * blocks), np.nan)
        padded[:rows, :columns] = values
        tiles = padded.reshape(padded.shape[0] // blocks, blocks, padded.shape[1] // blocks, blocks)
        with np.errstate(invalid="ignore"):
            values = np.nanmean(tiles, axis=(1, 3)) if np.isfinite(values).any() else tiles[:, 0, :, 0]
    low, high = image.norm.vmin, image.norm.vmax
    ramp = [_hex(image.cmap(step / (COLOURS - 1))) for step in range(COLOURS)]
    return {
        "type": "image",
        "extent": [_number(v) for v in extent],
        "values": [_numbers(row) for row in values],
        "shades": [_numbers(row) for row in np.ma.filled(image.norm(values), np.nan)],
        "low": _number(float(low)) if low is not None else None,
        "high": _number(float(high)) if high is not None else None,
        "ramp": ramp,
        "averaged": blocks,
        "unit": "",
    }


def _text(ax: Axes, text: Any) -> Mark:
    shown = _plain(text.get_text())
    if not shown.strip():
        return {}
    x, y = (float(v) for v in text.get_unitless_position())
    xy = getattr(text, "xy", None)
    if xy is not None and not all(_in_data(ax, text)):
        x, y = (float(v) for v in xy)
        inside = getattr(text, "xycoords", "data") == "data"
    else:
        inside = all(_in_data(ax, text))
    return {
        "type": "text",
        "x": _number(x),
        "y": _number(y),
        "inside": inside,
        "text": shown,
        "colour": _hex(text.get_color()),
        "align": str(text.get_ha()),
    }


def _axis(axis: Axis, limits: Sequence[float], label: str, scale: str) -> dict[str, Any]:
    low, high = (float(limit) for limit in limits)
    own = None
    names = [_plain(tick.get_text()) for tick in axis.get_ticklabels()]
    if any(name and not _is_number(name) for name in names):
        places = [float(place) for place in axis.get_ticklocs()]
        own = [[_number(place), name] for place, name in zip(places, names, strict=False) if name]
    return {
        "label": _plain(label),
        "limits": [_number(low), _number(high)],
        "log": scale == "log" and min(low, high) > 0,
        "ticks": own,
    }


def _is_colour_bar(ax: Axes) -> bool:
    return ax.get_label() == "<colorbar>" or hasattr(ax, "_colorbar")


def _colour_label(ax: Axes) -> str:
    return _plain(ax.get_ylabel() or ax.get_xlabel())


def _in_data(ax: Axes, artist: Any) -> tuple[bool, bool]:
    found = artist.get_transform().contains_branch_seperately(ax.transData)
    return bool(found[0]), bool(found[1])


def _label(artist: Any) -> str:
    label = str(artist.get_label() or "")
    return "" if label.startswith("_") else _plain(label)


def _dash(line: Any) -> str:
    pattern = getattr(line, "_unscaled_dash_pattern", (0, None))[1]
    width = max(1.0, float(line.get_linewidth()))
    return "" if not pattern else " ".join(f"{float(part) * width:.3g}" for part in pattern)


def _alpha(artist: Any) -> float:
    alpha = artist.get_alpha()
    return 1.0 if alpha is None or np.ndim(alpha) else round(float(alpha), 3)


def _hex(colour: Any) -> str:
    from matplotlib.colors import to_hex

    return str(to_hex(colour))


def _thinned(xs: Any, ys: Any) -> tuple[Any, Any]:
    """At most MOST_POINTS points, evenly picked, with the ends."""
    if len(xs) <= MOST_POINTS:
        return xs, ys
    kept = np.unique(np.linspace(0, len(xs) - 1, MOST_POINTS).round().astype(int))
    return xs[kept], ys[kept]


def _numbers(values: Any) -> list[float | None]:
    return [_number(float(value)) for value in values]


def _number(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _is_number(text: str) -> bool:
    plain = text.replace("−", "-").replace("^", "").replace("·", "").replace(" ", "")
    return not plain.strip("-+.0123456789eE%")


_MATH = (
    ("$", ""),
    ("\\mathdefault", ""),
    ("\\cdot", "·"),
    ("\\sigma", "σ"),
    ("\\varepsilon", "ε"),
    ("\\epsilon", "ε"),
    ("\\|", "‖"),
    ("\\Delta", "Δ"),
    ("\\lambda", "λ"),
    ("\\gamma", "γ"),
    ("\\infty", "∞"),
    ("{", ""),
    ("}", ""),
)


def _plain(text: str) -> str:
    """Text without the TeX marks that matplotlib reads."""
    if "$" in text:
        for mark, sign in _MATH:
            text = text.replace(mark, sign)
    return " ".join(text.split())
