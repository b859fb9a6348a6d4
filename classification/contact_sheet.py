"""Draws predictions as one picture: a card per image with its class and probability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dataset.decode import decode_image

CARD, PADDING, GAP, MARGIN = 232, 12, 16, 28
PICTURE = CARD - 2 * PADDING
SHEET, PAPER, BORDER = "#f3f4f6", "#ffffff", "#e1e4e8"
INK, FAINT, TRACK = "#1f2328", "#6a737d", "#e9ecef"
NEUTRAL, RIGHT, WRONG = "#3b6fb6", "#2e8b57", "#c8433a"
MAX_CARDS = 120


@dataclass(frozen=True)
class Card:
    """One image on the sheet.

    Attributes:
        path: image file.
        name: predicted class.
        probability: of that class, 0 to 1.
        truth: name of the true class, None when it is not known.
        correct: whether the prediction is right; None when the true class is not known.
    """

    path: Path
    name: str
    probability: float
    truth: str | None = None
    correct: bool | None = None


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own scalable font, so nothing needs to be installed."""
    return ImageFont.load_default(size)


def wrap(text: str, face: ImageFont.ImageFont, width: float, lines: int) -> list[str]:
    """Break ``text`` into at most ``lines`` lines of ``width`` pixels; an ellipsis marks a cut."""
    rows: list[str] = []
    row = ""
    for word in text.split():
        joined = f"{row} {word}".strip()
        if face.getlength(joined) <= width:
            row = joined
            continue
        if row:
            rows.append(row)
        while face.getlength(word) > width:  # one word longer than a line
            fits = (n for n in range(len(word) - 1, 1, -1) if face.getlength(word[:n]) <= width)
            cut = next(fits, 1)
            rows.append(word[:cut])
            word = word[cut:]
        row = word
    rows.append(row)
    if len(rows) > lines:
        rows = rows[:lines]
        while rows[-1] and face.getlength(rows[-1] + "…") > width:
            rows[-1] = rows[-1][:-1].rstrip()
        rows[-1] += "…"
    return rows


def shorten(text: str, face: ImageFont.ImageFont, width: float) -> str:
    """``text`` on one line, its middle replaced by an ellipsis when it is too long."""
    if face.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 1:
        keep -= 1
        short = text[: keep // 2] + "…" + text[len(text) - (keep - keep // 2) :]
        if face.getlength(short) <= width:
            return short
    return "…"


def thumbnail(path: Path) -> Image.Image:
    """The image in a PICTURE x PICTURE square, whole and centred; small ones are enlarged."""
    square = Image.new("RGB", (PICTURE, PICTURE), TRACK)
    picture = decode_image(path)
    scale = PICTURE / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    method = Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.LANCZOS
    picture = picture.resize(size, method)
    square.paste(picture, ((PICTURE - size[0]) // 2, (PICTURE - size[1]) // 2))
    return square


def draw_sheet(cards: Sequence[Card], title: str, caption: Sequence[str]) -> Image.Image:
    """The contact sheet.

    Args:
        cards: predictions; only the first 120 are drawn.
        title: first line, large.
        caption: further lines above the cards.

    Returns:
        An RGB image.
    """
    shown = list(cards[:MAX_CARDS])
    columns = _columns(len(shown))
    rows = math.ceil(len(shown) / columns)
    title_face, face, small, strong = font(28), font(16), font(14), font(20)
    labelled = any(card.truth is not None for card in shown)
    names = [wrap(card.name, strong, PICTURE, 2) for card in shown]
    name_height = 25 * max(map(len, names), default=1)
    card_height = 2 * PADDING + PICTURE + 8 + name_height + 28 + (20 if labelled else 0) + 20
    width = max(2 * MARGIN + columns * CARD + (columns - 1) * GAP, 640)
    lines = [part for line in caption for part in wrap(line, face, width - 2 * MARGIN, 3)]
    if len(cards) > len(shown):
        lines.append(f"The first {len(shown)} of {len(cards)} images are shown.")
    top = MARGIN + 42 + 22 * len(lines) + 16
    sheet = Image.new("RGB", (width, top + rows * (card_height + GAP) - GAP + MARGIN), SHEET)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), shorten(title, title_face, width - 2 * MARGIN), INK, title_face)
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + 42 + 22 * number), line, FAINT, face)
    for number, card in enumerate(shown):
        left = MARGIN + number % columns * (CARD + GAP)
        y = top + number // columns * (card_height + GAP)
        colour = {None: NEUTRAL, True: RIGHT, False: WRONG}[card.correct]
        draw.rounded_rectangle((left, y, left + CARD, y + card_height), 10, PAPER, BORDER)
        draw.rectangle((left + 10, y, left + CARD - 10, y + 4), colour)
        left, y = left + PADDING, y + PADDING
        sheet.paste(thumbnail(card.path), (left, y))
        y += PICTURE + 8
        for offset, row in enumerate(names[number]):
            draw.text((left, y + 25 * offset), row, INK, strong)
        y += name_height + 6
        _bar(draw, left, y, card.probability, colour, small)
        y += 24
        if labelled:
            if card.correct is False:
                draw.text((left, y), shorten(f"true: {card.truth}", small, PICTURE), WRONG, small)
            elif card.correct:
                draw.text((left, y), "correct", RIGHT, small)
            y += 20
        draw.text((left, y), shorten(card.path.name, small, PICTURE), FAINT, small)
    return sheet


def _columns(count: int) -> int:
    """Between 4 and 8 columns: at most two and a half times as many as rows, fewest gaps."""
    if count <= 5:
        return max(1, count)
    most = max(4, min(8, math.ceil(math.sqrt(count * 2.5))))
    return min(range(4, most + 1), key=lambda columns: (-count % columns, -columns))


def _bar(
    draw: ImageDraw.ImageDraw,
    left: int,
    y: int,
    share: float,
    colour: str,
    face: ImageFont.ImageFont,
) -> None:
    length = PICTURE - 52
    draw.rounded_rectangle((left, y + 3, left + length, y + 13), 5, TRACK)
    filled = round(length * min(1.0, max(0.0, share)))
    if filled:
        filled = max(filled, 5)
        draw.rounded_rectangle((left, y + 3, left + filled, y + 13), min(5, filled // 2), colour)
    draw.text((left + PICTURE, y), f"{100 * share:.1f}%", INK, face, anchor="ra")
