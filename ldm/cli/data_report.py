"""What was read of the data, printed in one block before the work on them begins; what may be a loss, as warnings."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from ldm.cli.main import flag_of
from ldm.data.report import DataReport
from ldm.runtime.text import replace_settings


def show_data(*reports: DataReport) -> None:
    """The block of each report on stdout, then its warnings on stderr; of several processes the first one prints."""
    if os.environ.get("RANK", "0") != "0":
        return
    for report in dict.fromkeys(reports):
        print_lines(report.lines())
        for warning in report.warnings():
            print(f"warning: {replace_settings(warning, flag_of)}", file=sys.stderr, flush=True)


def print_lines(lines: Iterable[str]) -> None:
    """Lines with the names of settings replaced by flags."""
    print("\n".join(replace_settings(line, flag_of) for line in lines), flush=True)
