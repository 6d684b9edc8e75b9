"""What all reports share: templates that escape all text, and pictures within the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

_TEMPLATES = Path(__file__).parent / "templates"


def fill(template: str, **values: Any) -> str:
    """The page of a template. All text is escaped, and a policy in the page forbids to fetch anything."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(**values)


def data_url(path: Path, largest: int = 1200) -> str:
    """A PNG as a WebP within a URL, lossless unless it is wider than `largest` pixels and is made smaller."""
    buffer = io.BytesIO()
    with Image.open(path, formats=("PNG",)) as image:
        shown = image.convert("RGB")
        shown.thumbnail((largest, 8 * largest))
        shown.save(buffer, format="WEBP", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
