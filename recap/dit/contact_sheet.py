"""Draws images in rows and columns, with a text beside each row, as one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP = 6  # pixels between images
_LETTERS = 12  # font size in pixels
_SMALLEST = 96  # images with fewer pixels along a side are enlarged
_TEXT = 240  # width of the texts' column in pixels


def contact_sheet(rows: Sequence[tuple[str, Sequence[Image.Image | None]]], titles: Sequence[str] = ()) -> Image.Image:
    """One picture.

    Args:
        rows: (text, images); None leaves a place empty. Texts are wrapped, and cut where a row is too low for them.
        titles: of the columns.
    """
    shown = [image for _, images in rows for image in images if image is not None]
    side = max((max(image.size) for image in shown), default=_SMALLEST)
    side *= -(-_SMALLEST // side)  # an integer factor, so that pixels stay squares
    columns = max(len(images) for _, images in rows)
    top = _LETTERS + 2 * _GAP if titles else _GAP
    sheet = Image.new("RGB", (_TEXT + columns * (side + _GAP) + _GAP, top + len(rows) * (side + _GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_LETTERS)
    for number, title in enumerate(titles):
        pen.text((_TEXT + number * (side + _GAP) + _GAP, _GAP), title, "black", font)
    for row, (text, images) in enumerate(rows):
        y = top + row * (side + _GAP)
        pen.multiline_text((_GAP, y), _wrapped(text, font, _TEXT - _GAP, side), "black", font)
        for column, image in enumerate(images):
            if image is not None:
                scale = side // max(image.size)
                larger = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
                sheet.paste(larger, (_TEXT + column * (side + _GAP) + _GAP, y))
    return sheet


def as_png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, height: int) -> str:
    """The text in lines of at most `width` pixels, as many as fit in `height`. Words that are too long are cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    lines = [line if font.getlength(line) <= width else _cut(line, font, width) for line in lines]
    most = max(height // (_LETTERS + 4), 1)  # multiline_text's spacing
    return "\n".join(lines if len(lines) <= most else [*lines[: most - 1], "…"])


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
