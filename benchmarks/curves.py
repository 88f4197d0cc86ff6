"""A picture of curves, as SVG: legible on light and on dark ground."""
from html import escape

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 44, 52
# In the order of the curves' names. Of a middle brightness, for both grounds.
COLOURS = ("#7d8590", "#3b82f6", "#d97706", "#16a34a")
STYLE = """text { font: 13px sans-serif; fill: #57606a } .title { font-size: 15px } .name { font-weight: bold }
path { fill: none; stroke-width: 1.3; stroke-linejoin: round; opacity: .85 } .grid { stroke: #8b949e; stroke-width: .6; opacity: .35 }
@media (prefers-color-scheme: dark) { text { fill: #adbac7 } }"""


def steps_of_axis(low, high, wanted=6):
    """Round numbers from `low` to `high`, about as many as wanted."""
    size = 10.0 ** -6
    while (high - low) / size > wanted:
        size *= 2.5 if f"{size:e}".startswith("2") else 2  # 1, 2, 5, 10
    first = -int(-low // size)
    return [round(number * size, 6) for number in range(first, int(high // size) + 1)]


def picture(title, across, up, curves, marks):
    """`curves`: name → lists of (x, y). `marks`: name → points to stress. `across` and `up` say what the axes are."""
    points = [point for lists in curves.values() for one in lists for point in one]
    x_high = max(x for x, _ in points) * 1.03
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    y_low, y_high = y_low - 0.1 * (y_high - y_low), y_high + 0.02 * (y_high - y_low)  # room for the names

    def place(x, y):
        return (round(LEFT + x / x_high * (WIDTH - LEFT - RIGHT), 1),
                round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1))

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">', f"<style>{STYLE}</style>",
             text(LEFT, 24, title, "title")]
    for y in steps_of_axis(y_low, y_high):
        height = place(0, y)[1]
        parts += [grid(LEFT, height, WIDTH - RIGHT, height), text(LEFT - 8, height + 4, f"{y:g}", anchor="end")]
    for x in steps_of_axis(0, x_high):
        column = place(x, 0)[0]
        parts += [grid(column, TOP, column, HEIGHT - BOTTOM), text(column, HEIGHT - BOTTOM + 18, f"{x:g}", anchor="middle")]
    parts += [text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, across, anchor="middle"),
              f'<g transform="rotate(-90 16 {HEIGHT / 2})">{text(16, HEIGHT / 2, up, anchor="middle")}</g>']
    for (name, lists), colour in zip(curves.items(), COLOURS):
        for one in lists:
            parts.append(f'<path stroke="{colour}" d="M{" ".join(f"{x},{y}" for x, y in (place(*point) for point in one))}"/>')
        for x, y in (place(*point) for point in marks[name]):
            parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>')
        # Below where they end there are no others: who is quicker is lower all the way.
        end_x, end_y = place(max(one[-1][0] for one in lists), min(one[-1][1] for one in lists))
        parts.append(text(end_x, end_y + 20, name, "name", "middle" if end_x < WIDTH - 60 else "end", colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def text(x, y, words, kind=None, anchor="start", colour=None):
    extra = (f' class="{kind}"' if kind else "") + (f' style="fill:{colour}"' if colour else "")
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{extra}>{escape(words)}</text>'


def grid(x1, y1, x2, y2):
    return f'<line class="grid" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'
