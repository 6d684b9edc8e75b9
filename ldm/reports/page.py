"""What all reports share: templates that escape all text, and images within the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from ldm.runtime.files import open_regular

_TEMPLATES = Path(__file__).parent / "templates"


def render_template(template: str, **values: Any) -> str:
    """The page of a template. All text is escaped, and a policy in the page forbids it to load anything."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(**values)


def data_url(path: Path, max_width: int = 1200) -> str:
    """A PNG as a WebP within a URL, lossless unless it is wider than `max_width` pixels and so is made smaller."""
    buffer = io.BytesIO()
    with open_regular(path) as stream, Image.open(stream, formats=("PNG",)) as image:
        resized = image.convert("RGB")
        resized.thumbnail((max_width, 8 * max_width))
        resized.save(buffer, format="WEBP", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
