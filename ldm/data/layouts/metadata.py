"""metadata.jsonl, .csv or .parquet: a row for each image, or for each of its captions (the layout of Hugging Face)."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath

from ldm.data.columns import FILE_NAMES, LABELS, TEXTS, Choice, choose, unused_columns
from ldm.data.config import DataConfig
from ldm.data.layouts.annotations import Annotations
from ldm.data.layouts.tables import table_columns, table_rows
from ldm.data.layouts.tree import Tree, inside
from ldm.data.listing import check_label, check_texts
from ldm.data.report import PassedOver
from ldm.runtime.errors import UserError
from ldm.runtime.text import counted, printable

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def read_metadata(tree: Tree, file: str, config: DataConfig, *, names_only: bool = False) -> Annotations:
    """The rows of a table; several rows of one image are several captions. `UserError` names file and line."""
    path = tree.folder / file
    parent = file[: -len(PurePosixPath(file).name)]
    listed = Annotations(file)
    present, where = table_columns(path), printable(path)
    image = choose("image", config.image_column, FILE_NAMES, present, where)
    label = text = Choice("")
    if not names_only:
        label = choose("label", config.label_column, LABELS, present, where)
        text = choose("text", config.text_column, TEXTS, [name for name in present if name != image.column], where)
    if not image.column and present:
        problem = f"{where}: no column with file names ({', '.join(FILE_NAMES[:5])}, ...), got "
        raise UserError(problem + printable(", ".join(present)), remedy="name it by `image_column`")
    columns = tuple(dict.fromkeys(choice.column for choice in (image, label, text) if choice.column))
    repeated: Counter[str] = Counter()
    rows = 0
    for line, row in table_rows(path, columns) if columns else ():
        rows += 1
        at = f"{where}, {'row' if path.suffix == '.parquet' else 'line'} {line}"
        name = inside(tree, parent, row.get(image.column), at)
        own_label = row.get(label.column) if label.column else None
        own_label = None if own_label is None else check_label(own_label, at)
        texts = row.get(text.column) if text.column else None
        texts = () if texts is None else check_texts(texts, at)
        if name in listed.names:
            if listed.labels.get(name) != own_label:
                other = f"{listed.labels.get(name)!r} on line {listed.names[name]}"
                raise UserError(f'{at}: "{printable(name)}" has label {own_label!r}, and {printable(other)}')
            if set(texts) <= set(listed.captions.get(name, ())):
                repeated[name] += 1
        listed.names.setdefault(name, line)
        listed.add_captions(name, texts)
        if own_label is not None:
            listed.labels[name] = own_label
    if not listed.names:
        raise UserError(f"{where}: lists no image")
    listed.set_parent(parent)
    if path.suffix in (".csv", ".tsv") and all(str(v).isascii() and str(v).isdigit() for v in listed.labels.values()):
        listed.labels = {name: check_label(int(value), where) for name, value in listed.labels.items()}
    several = rows - len(listed.names) - repeated.total()
    listed.rows = rows
    listed.how = ", ".join(choice.line for choice in (image, text, label) if choice.line)
    if several:
        listed.how += f"; {counted(several, 'row')} with another caption of the same image"
    if repeated:
        reason = "the same image with the same caption is listed before"
        listed.passed_over.append(PassedOver("row", repeated.total(), reason, min(repeated)))
    listed.passed_over += unused_columns((image, label, text), present)
    return listed
