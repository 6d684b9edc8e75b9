"""`ldm COMMAND ...`: runs the module of the command; a user's mistake is printed in one line, with exit code 2."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from ldm.runtime.disk import is_full, room_line
from ldm.runtime.errors import LostProcessError, StoppedByOtherProcess, UserError
from ldm.runtime.exhaustion import ExhaustedError, exhausted
from ldm.runtime.locks import remove_own
from ldm.runtime.stopping import Interrupted, interrupting_signals
from ldm.runtime.text import is_utf8, printable, replace_settings, suggest

COMMANDS = {
    "train": "train an autoencoder, a diffusion model, a noisy classifier, a prior over codes or a GAN",
    "encode": "encode a data set into a latent cache",
    "sample": "generate images with a model under any guidance",
    "evaluate": "metrics of a model, of a folder of images against another, or of an autoencoder",
    "compare": "compare guidance methods and scales on the same seeds, autoencoders, or earlier results",
    "ema": "make a model with another EMA length from the snapshots of a training",
    "info": "show the contents of a run or model folder",
    "report": "write the curves and sample images of a training to one HTML file",
    "list": "list samplers, guidances, metrics or configs",
    "quickstart": "train, sample, evaluate and compare on built-in data, in minutes on a CPU",
}

# Errors of the file system: the user's mistake (2), or a failure during the work (1).
_PATHS = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.ENXIO,
)
_REFUSALS = dict.fromkeys((*_PATHS, errno.EACCES, errno.EPERM, errno.EROFS), 2) | {errno.ENOSPC: 1, errno.EDQUOT: 1}
_LONGEST_LINE = 2000  # characters


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. The exit code is 0, 2 for a user's mistake, 1 for a failure, or 128 + signal when stopped."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _quiet_libraries()
    _shorten_openmp_spin()
    try:
        with interrupting_signals():
            return _run(arguments)
    except UserError as error:
        return _fail(2, str(error))
    except StoppedByOtherProcess as leaving:
        return leaving.code
    except (FloatingPointError, LostProcessError, ExhaustedError) as error:
        return _fail(1, str(error))
    except Interrupted as stop:
        return _fail(128 + stop.signal_number, str(stop))
    except KeyboardInterrupt:
        return _fail(130, "stopped")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _REFUSALS or (error.errno in _PATHS and error.filename is None):
            raise
        reason = error.strerror or os.strerror(error.errno)
        if is_full(error) and error.filename and " free " not in reason:
            reason += f" ({room_line(Path(os.fsdecode(error.filename)).parent)})"
        return _fail(_REFUSALS[error.errno], f"{error.filename or 'output'}: {reason}")
    except (MemoryError, RuntimeError) as error:
        if str(error).startswith("Symlink loop"):  # of `Path.resolve`
            return _fail(2, f"{error}; expected a link that leads to a file or folder")
        if not (problem := exhausted(error)):
            raise
        return _fail(1, f"{problem}; lower `batch_size` (in training `train_batch_size`), `image_size` or the workers")
    finally:
        remove_own()


def _check_text(arguments: list[str]) -> None:
    """`UserError`, with the flag, for an argument that is not UTF-8 text: it could not be stored with the result."""
    for position, argument in enumerate(arguments):
        if not is_utf8(argument):
            flag = next((word for word in reversed(arguments[:position]) if word.startswith("--")), "")
            raise UserError(f"{flag} {printable(argument)}: not UTF-8 text".lstrip(), remedy="give it in UTF-8")


def _run(arguments: list[str]) -> int:
    _check_text(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("guided-latents"))
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}", remedy=suggest(name, COMMANDS))
    module = importlib.import_module(f"ldm.cli.{'listing' if name == 'list' else name}")
    return module.run(arguments[1:]) or 0


def _fail(code: int, message: str) -> int:
    line = printable(" ".join(replace_settings(message, flag_of).split()), None)
    if len(line) > _LONGEST_LINE:  # what was given is long; the remedy stands at the end
        line = f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 3 :]}"
    print(f"ldm: {line}", file=sys.stderr)
    return code


def flag_of(setting: str) -> str:
    """The flag of a setting."""
    return "--" + setting.replace("_", "-")


class _Formatter(logging.Formatter):
    """Log lines with the names of settings replaced by flags."""

    def format(self, record: logging.LogRecord) -> str:
        return replace_settings(super().format(record), flag_of)


def _usage() -> str:
    lines = ["usage: ldm COMMAND ... (`ldm COMMAND --help` for its options)", ""]
    return "\n".join(lines + [f"  {name:<12}{text}" for name, text in COMMANDS.items()])


def _quiet_libraries() -> None:
    """Log to stderr; silence the messages of other libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("ldm").setLevel(logging.INFO)
    for name in ("transformers", "diffusers", "accelerate", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # of Pillow: such a file is refused


def _shorten_openmp_spin() -> None:
    """Let OpenMP's waiting threads soon give their core away, here and in child processes.

    By default GNU's threads spin 300,000 times first, and on a busy machine take the core from the thread that they
    wait for: ten training steps then take 77 s instead of 10. It is read once, when torch is imported.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"
