"""Hook of mkdocs: pages that are not in docs/ (READMEs, commands, the Python reference), and links between them.

A file of the repository is read on GitHub and on the site alike, so its links are those of the repository: here they are
turned into links of the site, and to plain text where the site has no such page.
"""

import contextlib
import io
import os
import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
#: Files of the repository that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "Guide_app.md": "guide.md",
    "data/README.md": "data.md",
    "audioset/README.md": "audioset.md",
    "speech/README.md": "speech.md",
    "clap/README.md": "clap.md",
    "superb/README.md": "superb.md",
    "app/icbhi_sprs/README_ICBHI_SPRS.md": "icbhi_sprs.md",
    "app/icbhi_sprs": "icbhi_sprs.md",
    "app/circor/README.md": "circor.md",
    "app/circor": "circor.md",
    "weights/README.md": "tiny.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
SOURCES = {page: source for source, page in PAGES.items() if source.endswith(".md")}
#: Packages of the Python reference, in the order of the dependencies.
PACKAGES = {
    "inference": "Use a model: embeddings, tags, audio in.",
    "models": "Encoders, masked autoencoders, M2D and its variants.",
    "audio": "Decode audio; log-mel spectrograms.",
    "data": "Lists, files, packs, samples and batches.",
    "checkpoint": "Find, verify and load checkpoints of any layout.",
    "share": "Export a model: for transformers, as ONNX, the encoder alone.",
    "evaluation": "What an encoder is worth.",
    "adapters": "An encoder as benchmarks ask for it.",
    "train": "The training loop and what it needs.",
    "finetune": "A classifier or an event detector from a pre-trained encoder.",
    "report": "Pages and pictures of runs and embeddings.",
    "run": "A run's folder, logs and checkpoints.",
    "utils": "What all programs share.",
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)")
PICTURE = re.compile(r'<picture>.*?srcset="([^"]+)".*?src="([^"]+)".*?alt="([^"]*)".*?</picture>', re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    pages = {page: (ROOT / source).read_text() for page, source in SOURCES.items()}
    pages["commands.md"] = commands()
    pages["api/index.md"] = "# Python\n\n" + "\n".join(f"- [m2d.{name}]({name}.md): {what}" for name, what in PACKAGES.items())
    pages |= {f"api/{name}.md": module_reference(name, purpose) for name, purpose in PACKAGES.items()}
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")
    markdown = PICTURE.sub(r"![\3](\2#only-light)\n![\3](\1#only-dark)", markdown)
    return LINK.sub(lambda match: site_link(*match.groups(), source, here), markdown)


def site_link(image: str, text: str, target: str, source: str, here: str) -> str:
    """A Markdown link as the site needs it.

    Args:
        image: `!` for an image, else empty.
        text, target: of the link.
        source, here: the file that has it, in the repository and on the site.
    """
    path, hash_sign, anchor = target.partition("#")
    if not path or "://" in path or here.startswith("api/") or here == "commands.md":
        return f"{image}[{text}]({target})"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    page = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if page is None:
        return text
    return f"{image}[{text}]({os.path.relpath(page, posixpath.dirname(here) or '.')}{hash_sign}{anchor})"


def commands() -> str:
    """The page of all commands: what their `--help` prints."""
    sys.path.insert(0, str(ROOT))
    os.environ["COLUMNS"] = "100"  # the width of argparse's help
    from m2d.cli.main import COMMANDS

    sections = ["# Commands\n\n`m2d` alone prints this list. A flag may be written with dashes (`--batch-size`) too.\n"]
    sections += [f"- [`m2d {name}`](#m2d-{name}): {purpose}" for name, (_, purpose) in COMMANDS.items()]
    for name in COMMANDS:
        sections.append(f"\n## m2d {name}\n\n```text\n{help_of([name])}\n```")
        if name == "train":
            sections.append(f"\n### Flags of m2d train\n\n```text\n{help_of([name, 'm2d'])}\n```")
    return "\n".join(sections)


def help_of(words: list[str]) -> str:
    """What a command prints with --help."""
    from m2d.cli.main import main

    printed, arguments = io.StringIO(), sys.argv
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    sys.argv = arguments
    return printed.getvalue().strip()


def module_reference(package: str, purpose: str) -> str:
    """The page of a package: all its public modules."""
    files = sorted((ROOT / "m2d" / package).rglob("*.py"))
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if file.name != "__init__.py"]
    return f"# m2d.{package}\n\n{purpose}\n\n" + "\n".join(f"::: {name}\n" for name in modules)
