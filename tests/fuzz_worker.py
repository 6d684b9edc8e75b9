"""The process in which `ldm/test_fuzz.py` runs its cases: warm, and forked for each.

A line of JSON on stdin is a case, {"arguments": [...], "folder": ...}; a line on stdout is what came of it: the exit
code (negative: the signal), stdout, stderr, seconds, and how many bytes the case added to the memory of the process.
"""

import json
import logging
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

SECONDS, BYTES = 30, 3 * 2**30  # hard limits; the test has lower ones


def read_data(arguments):
    """`read FOLDER`: everything of a data set, as a training reads it."""
    from hashlib import sha256

    from ldm.data.config import DataConfig
    from ldm.data.open import open_data

    data = open_data(DataConfig(data=arguments[0], image_size=8, validation_fraction=0))
    pixels = sha256()
    for index in range(len(data)):
        pixels.update(data[index].image.numpy().tobytes())
    texts = [data.captions(index) for index in range(len(data))] if data.has_captions else []
    print(len(data), data.class_names, [data.label(i) for i in range(len(data))], texts, pixels.hexdigest())


def read_settings(arguments):
    """`settings KIND ...`: the settings of a training from files and flags."""
    from ldm.cli.parsing import parse
    from ldm.cli.train import _schema
    from ldm.runtime.settings import to_yaml

    print(to_yaml(parse(_schema(arguments[0]), arguments[1:], "train")))


def run(case):
    """One case in a child of this process."""
    with tempfile.TemporaryFile("w+b") as out, tempfile.TemporaryFile("w+b") as err:
        start = time.perf_counter()
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            in_child(case)
        _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - start
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
    peak = max(0, usage.ru_maxrss * 1024 - resident())
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": texts[0],
        "err": texts[1],
        "seconds": seconds,
        "peak": peak,
    }


def in_child(case):
    code = 1
    try:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)  # by default the signal ends the process
        os.chdir(case["folder"])
        from ldm.cli.main import main

        code = main([os.fsdecode(argument.encode("utf-8", "surrogateescape")) for argument in case["arguments"]])
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def resident():
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def serve(warm_up):
    """Make the imports of all commands, then run cases until stdin ends."""
    import importlib

    import torch

    from ldm.cli.main import COMMANDS, main

    torch.set_num_threads(1)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name, function in (("read", read_data), ("settings", read_settings)):
        COMMANDS[name] = function.__doc__
        sys.modules[f"ldm.cli.{name}"] = SimpleNamespace(run=function)
    for name in ("train", "sample", "info", "report", "evaluate", "compare"):
        importlib.import_module(f"ldm.cli.{name}")
    for folder, arguments in warm_up:
        os.chdir(folder)
        if main(arguments) != 0:
            sys.exit(f"a case that is not changed fails: {arguments}")
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
