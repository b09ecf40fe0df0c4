#!/usr/bin/env python3
"""Draws the screen of a terminal, as `tmux capture-pane -e -p` prints it.

Usage: bench/screen.py SCREEN PNG [TXT]      (TXT: the same as plain text)

Needs Pillow and the font DejaVu Sans Mono. Knows the attributes bold, dim and reverse.
"""

import re
import sys

from PIL import Image, ImageDraw, ImageFont

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


def main():
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


main()
