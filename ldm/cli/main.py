"""`ldm COMMAND ...`: finds the command's file, and turns mistakes into one line and exit code 2."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from ldm.runtime.errors import LostProcessError, StoppedByOtherProcess, UserError
from ldm.runtime.text import printable, replace_settings, suggest

COMMANDS = {
    "train": "train an autoencoder, a diffusion model, a noisy classifier, a prior over codes or a GAN",
    "encode": "encode a data set into a latent cache",
    "sample": "draw pictures from a model under any guidance",
    "evaluate": "distances and accuracy of a model or between two folders; measures of an autoencoder",
    "compare": "compare guidance methods and scales on the same seeds, or autoencoders",
    "ema": "a model of another averaging length, from the snapshots of a training",
    "info": "what a run or model folder holds",
    "report": "the curves and pictures of a training in one HTML file",
    "list": "list samplers, guidances, metrics or configs",
    "quickstart": "the whole path on built-in data, on a CPU in minutes",
}

# What the file system refuses: the user's mistake, or a failure on the way.
_REFUSALS = {errno.EACCES: 2, errno.EPERM: 2, errno.EROFS: 2, errno.ENOSPC: 1, errno.EDQUOT: 1}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 for a user's mistake, 1 for a failure, 128 + signal when stopped."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _quiet_libraries()
    try:
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
    except UserError as error:
        return _fail(2, str(error))
    except StoppedByOtherProcess as leaving:
        return leaving.code
    except (FloatingPointError, LostProcessError) as error:
        return _fail(1, str(error))
    except KeyboardInterrupt:
        return _fail(130, "stopped")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        return _fail(
            _REFUSALS[error.errno], f"{error.filename or 'output'}: {error.strerror or os.strerror(error.errno)}"
        )


def _fail(code: int, message: str) -> int:
    line = " ".join(replace_settings(message, _flag).split())
    print(f"ldm: {printable(line, None)}", file=sys.stderr)
    return code


def _flag(setting: str) -> str:
    return "--" + setting.replace("_", "-")


class _Formatter(logging.Formatter):
    """Log lines of the libraries, with flags in the place of settings."""

    def format(self, record: logging.LogRecord) -> str:
        return replace_settings(super().format(record), _flag)


def _usage() -> str:
    lines = ["usage: ldm COMMAND ... (`ldm COMMAND --help` for its options)", ""]
    return "\n".join(lines + [f"  {name:<12}{text}" for name, text in COMMANDS.items()])


def _quiet_libraries() -> None:
    """Our log lines on stderr; the libraries' chatter off."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("ldm").setLevel(logging.INFO)
    for name in ("transformers", "diffusers", "accelerate", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
