"""Curves as an SVG picture, without a plotting library."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 900, 420, 60, 40, 300, 50
COLOURS = ("#1b6ca8", "#d1495b", "#5b8c3e", "#8d6cab", "#c08a2d", "#4a4a4a")

Points = Sequence[tuple[float, float]]


def svg(title: str, x_label: str, lines: Mapping[str, Points]) -> str:
    """Named lines over one x axis; the y axis starts at 0 and ends at a multiple of 20."""
    points = [point for line in lines.values() for point in line]
    right = max((x for x, _ in points), default=1) or 1
    top = 20 * (1 + int(max((y for _, y in points), default=0) // 20))
    at_x = lambda x: LEFT + (WIDTH - LEFT - RIGHT) * x / right
    at_y = lambda y: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / top
    marks = [_text(LEFT, TOP - 16, title, weight="bold")]
    for y in range(0, top + 1, 20):
        marks.append(
            f'<path d="M{LEFT} {at_y(y):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            + _text(LEFT - 8, at_y(y) + 4, str(y), anchor="end")
        )
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = share * right
        marks.append(_text(at_x(x), HEIGHT - BOTTOM + 20, f"{x:,.0f}", anchor="middle"))
    marks.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_label, anchor="middle"))
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line)
        marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        last = f": {line[-1][1]:.1f}" if line else ""
        marks.append(_text(WIDTH - RIGHT + 12, TOP + 20 * number, name + last, colour=colour))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" '
        f'fill="white"/>\n' + "\n".join(marks) + "\n</svg>\n"
    )


def _text(
    x: float, y: float, words: str, anchor: str = "start", colour: str = "#222", weight: str = ""
) -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{bold}>'
        f"{escape(words)}</text>"
    )
