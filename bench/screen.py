#!/usr/bin/env python3
"""Draws the screen of a terminal, as `tmux capture-pane -e -p` prints it.

Usage: bench/screen.py SCREEN PNG [TXT]      (TXT: the same as plain text)
       bench/screen.py --film FOLDER SVG     (the screens SECONDS.screen of a folder, one after the other)

A PNG needs Pillow and the font DejaVu Sans Mono. Knows the attributes bold, dim and reverse.
"""

import html
import itertools
import pathlib
import re
import sys

FONTS = "/usr/share/fonts/truetype/dejavu/DejaVuSansMono"
SIZE, WIDTH, HEIGHT, MARGIN = 14, 8.43, 18, 10
BACK, TEXT, BOLD, DIM = "#1b1b1b", "#d6d6d6", "#ffffff", "#8c8c8c"


def cells(screen):
    """The characters with their attributes: lines of (character, set of attributes)."""
    attributes = frozenset()
    for line in screen.rstrip("\n").split("\n"):
        row = []
        for part in re.split(r"(\x1b\[[0-9;]*m)", line):
            if not part.startswith("\x1b"):
                row += [(character, attributes) for character in part]
                continue
            for code in part[2:-1].split(";"):
                attributes = {"": frozenset(), "0": frozenset()}.get(code, attributes)
                name = {"1": "bold", "2": "dim", "7": "reverse"}.get(code)
                attributes = attributes | {name} if name else attributes
        yield row


def picture():
    from PIL import Image, ImageDraw, ImageFont

    screen = list(cells(open(sys.argv[1], encoding="utf-8").read()))
    columns = max(map(len, screen))
    regular = ImageFont.truetype(f"{FONTS}.ttf", SIZE)
    bold = ImageFont.truetype(f"{FONTS}-Bold.ttf", SIZE)
    size = (round(columns * WIDTH) + 2 * MARGIN, len(screen) * HEIGHT + 2 * MARGIN)
    image = Image.new("RGB", size, BACK)
    draw = ImageDraw.Draw(image)
    for y, row in enumerate(screen):
        for x, (character, attributes) in enumerate(row):
            left, top = MARGIN + x * WIDTH, MARGIN + y * HEIGHT
            color = BOLD if "bold" in attributes else DIM if "dim" in attributes else TEXT
            if "reverse" in attributes:
                draw.rectangle((left, top, left + WIDTH, top + HEIGHT - 1), fill=color)
                color = BACK
            draw.text((left, top), character, color, bold if "bold" in attributes else regular)
    image.quantize(32).save(sys.argv[2], optimize=True)
    if sys.argv[3:]:
        lines = ["".join(character for character, _ in row).rstrip() for row in screen]
        open(sys.argv[3], "w", encoding="utf-8").write("\n".join(lines) + "\n")


def film(folder, file):
    """An SVG that plays the screens, without a script, and begins again some seconds after the last one. A line is drawn once for
    all screens that have it in the same place. Who prefers no motion sees the last screen."""
    shots = sorted((float(path.stem), path) for path in pathlib.Path(folder).glob("*.screen"))
    screens = [[tuple(row) for row in cells(path.read_text(encoding="utf-8"))] for _, path in shots]
    starts = [time - shots[0][0] for time, _ in shots]
    total = starts[-1] + 6
    ends = starts[1:] + [total]
    shown = {}
    for screen, start, end in zip(screens, starts, ends):
        for y, row in enumerate(screen):
            if not any(character.strip() or "reverse" in attributes for character, attributes in row):
                continue
            times = shown.setdefault((y, row), [])
            if times and times[-1][1] == start:
                times[-1] = (times[-1][0], end)
            else:
                times.append((start, end))
    columns = max(len(row) for screen in screens for row in screen)
    lines = max(map(len, screens))
    width, height = round(columns * WIDTH) + 2 * MARGIN, lines * HEIGHT + 2 * MARGIN
    rules, drawn, names = [], [], {}
    for (y, row), times in sorted(shown.items(), key=lambda item: item[1]):
        name = names.setdefault(tuple(times), f"k{len(names)}")
        if times != [(0, total)]:
            last = " last" if times[-1][1] == total else ""
            drawn.append(f'<g class="{name}{last}">{line(y, row)}</g>')
        else:
            drawn.append(line(y, row))
    for times, name in names.items():
        steps = {0: "hidden"}
        for start, end in times:
            steps[start / total * 100] = "visible"
            steps[end / total * 100] = "hidden"
        # The last step would hold for no time.
        keys = "".join(f"{percent:.2f}%{{visibility:{what}}}" for percent, what in sorted(steps.items()) if percent < 100)
        rules.append(f"@keyframes {name}{{{keys}}}.{name}{{animation-name:{name}}}")
    style = f"""text{{font:{SIZE}px 'DejaVu Sans Mono',Menlo,Consolas,monospace;fill:{TEXT};white-space:pre}}
.b{{font-weight:bold;fill:{BOLD}}}.d{{fill:{DIM}}}.r{{fill:{BACK}}}
g{{visibility:hidden;animation:{total:.2f}s step-end infinite}}
{chr(10).join(rules)}
@media(prefers-reduced-motion:reduce){{g{{animation:none}}g.last{{visibility:visible}}}}"""
    pathlib.Path(file).write_text(
        f'''<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<title>A recorded session</title>
<style>
{style}
</style>
<rect width="{width}" height="{height}" rx="6" fill="{BACK}"/>
{chr(10).join(drawn)}
</svg>
''',
        encoding="utf-8",
    )


def line(y, row):
    """The elements of a line: a text for each run of equal attributes, which keeps its width in any font."""
    drawn, x = [], 0
    top = MARGIN + y * HEIGHT
    for attributes, run in itertools.groupby(row, key=lambda cell: cell[1]):
        text = "".join(character for character, _ in run)
        left, width = MARGIN + x * WIDTH, len(text) * WIDTH
        x += len(text)
        if "reverse" in attributes:
            color = BOLD if "bold" in attributes else DIM if "dim" in attributes else TEXT
            drawn.append(f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{HEIGHT}" fill="{color}"/>')
        text = text.rstrip()
        if text:
            kind = "".join(letter for letter, name in (("b", "bold"), ("d", "dim"), ("r", "reverse")) if name in attributes)
            kind = f' class="{" ".join(kind)}"' if kind else ""
            length = f'textLength="{len(text) * WIDTH:.1f}" lengthAdjust="spacingAndGlyphs"'
            drawn.append(f'<text x="{left:.1f}" y="{top + 14}" {length}{kind}>{html.escape(text)}</text>')
    return "".join(drawn)


if sys.argv[1] == "--film":
    film(*sys.argv[2:4])
else:
    picture()
