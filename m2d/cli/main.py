"""The command `m2d`: finds a command's program and hands it the arguments. Imports nothing heavy, so that help is instant."""

import importlib
import sys
from collections.abc import Sequence

from ..utils.program import EXIT_INTERRUPTED, EXIT_USAGE, did_you_mean, run_program

#: Each command: the module, relative to m2d, whose `main(argv)` returns an exit status; what it is for.
COMMANDS = {
    "convert": (".cli.convert", "audio files to log-mel spectrograms (.npy files, or a pack)"),
    "check": (".cli.check", "a list's clips: missing, truncated, silent, duplicate files"),
    "captions": (".cli.captions", "embeddings of captions, which M2D-CLAP is trained on"),
    "pack": (".cli.pack", "the spectrograms of a list into a few large files, read faster"),
    "train": (".cli.train", "pre-train M2D, M2D-X, MAE, M2D-AS, M2D-S or M2D-CLAP"),
    "profile": (".cli.profile", "where a training step spends its time"),
    "report": (".cli.report", "a page of what training runs have learned: curves, masks, neighbours, a map"),
    "probe": (".cli.probe", "how well a model's features tell your classes apart"),
    "finetune": (".cli.finetune", "a classifier or event detector of your own sounds, from a pre-trained model"),
    "export": (".cli.export", "a checkpoint's encoder as a file, a folder for Hugging Face's transformers, or ONNX"),
    "embed": (".inference.embed", "embeddings of audio files (.npz)"),
    "explore": (".cli.explore", "a page of embeddings: a map, clusters, neighbours of each file"),
    "zeroshot": (".cli.zeroshot", "which of the classes you name a sound is, by an M2D-CLAP checkpoint"),
    "search": (".cli.search", "the sounds of an index nearest to a text or a sound, by M2D-CLAP"),
    "tag": (".inference.tag", "class probabilities of audio files, by a fine-tuned checkpoint"),
}


def usage() -> str:
    """The overview that `m2d` alone prints."""
    lines = [f"  {name:<10} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(["usage: m2d COMMAND [ARGUMENTS]", "", *lines, "", "m2d COMMAND --help describes a command."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        return run_program(lambda: print(usage()))
    if words[0] == "--version":
        from .. import __version__

        print(f"m2d {__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        suggestion = did_you_mean(name, COMMANDS) or "; m2d alone lists the commands"
        print(f"m2d: error: there is no command {name}{suggestion}", file=sys.stderr)
        return EXIT_USAGE
    sys.argv = [f"m2d {name}", *rest]  # the name that usage and errors show
    try:
        module = importlib.import_module(COMMANDS[name][0], __package__.rpartition(".")[0])
    except ModuleNotFoundError as error:
        return _explain_missing(name, error)
    except KeyboardInterrupt:  # a second and more goes into imports
        print(f"m2d {name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return module.main(rest)


def _explain_missing(command: str, error: ModuleNotFoundError) -> int:
    package = (error.name or "").partition(".")[0]
    if package in ("", __package__.partition(".")[0]):
        raise error
    print(f"m2d {command}: error: {package} is not installed: pip install 'm2d-audio[train]'", file=sys.stderr)
    return EXIT_USAGE
