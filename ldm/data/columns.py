"""Which columns or fields of a table hold images, labels and captions: those that are named, else the usual ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ldm.data.report import PassedOver
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable, suggest

FILE_NAMES = ("file_name", "filename", "file", "image", "image_path", "img_path", "path", "image_file", "img", "name")
IMAGES = ("image", "img", "jpg", "png", "jpeg", "webp", "pixel_values")  # encoded images in a table
LABELS = ("label", "labels", "class", "fine_label", "category", "class_name", "label_name", "class_id", "target", "cls")
TEXTS = (
    *("text", "caption", "captions", "prompt", "prompts", "en_text", "text_en", "en_caption", "caption_en", "txt"),
    *("description", "sentence", "sentences", "blip_caption", "alt_text", "texts"),
)
_SETTINGS = {"image": "image_column", "label": "label_column", "text": "text_column"}


@dataclass(frozen=True)
class Choice:
    """The column of one kind, "" for none; how it was chosen; the other columns that look like the same."""

    column: str
    line: str = ""
    rivals: tuple[str, ...] = ()


def choose(kind: str, given: str, usual: Collection[str], present: Collection[str], where: str) -> Choice:
    """The column of this kind (image, label or text): `given`, else the first usual name, else the one usual name that
    is present, in any case of its letters. `UserError` where two are alike, or `given` is not there."""
    setting = _SETTINGS[kind]
    what = {"image": "images", "label": "classes", "text": "captions"}[kind]
    if given and given not in present:
        raise UserError(f'{where}: no column "{printable(given)}" (`{setting}`)', remedy=suggest(given, present))
    known = [name for usual_name in usual for name in present if name.lower() == usual_name]
    if given:
        line = f'{what} in column "{printable(given)}" (`{setting}`)'
        return Choice(given, line, tuple(name for name in known if name != given))
    if not known:
        return Choice("")
    first = next(iter(usual))
    if len(known) > 1 and known[0] != first:
        listed = ", ".join(printable(name) for name in known)
        raise UserError(f"{where}: several columns may be its {what} ({listed})", remedy=f"name one by `{setting}`")
    line = f'{what} in column "{printable(known[0])}"'
    if known[0] != first:
        line += f", a usual name (`{setting}` names another)"
    return Choice(known[0], line, tuple(known[1:]))


def unused_columns(choices: Iterable[Choice], present: Collection[str]) -> list[PassedOver]:
    """The columns that are not read. Those with a usual name are warnings; all are where no condition was found."""
    chosen = {choice.column for choice in choices}
    rivals = dict.fromkeys(name for choice in choices for name in choice.rivals if name not in chosen)
    others = [name for name in present if name not in chosen and name not in rivals]
    conditions = [choice for choice in list(choices)[1:] if choice.column]  # the first is that of the images
    passed = []
    if rivals:
        reason = "another was chosen; `text_column` or `label_column` names one"
        passed.append(PassedOver(f"column ({', '.join(rivals)})", len(rivals), reason, condition=True))
    if others:
        reason = "no usual name of captions or classes (`text_column`, `label_column`)"
        listed = ", ".join(others[:12]) + (", ..." if len(others) > 12 else "")
        passed.append(PassedOver(f"column ({listed})", len(others), reason, condition=not conditions))
    return passed
