"""Packs of made-up clips, by the command line."""

from m2d.cli.pack import main

LENGTHS = [30, 12, 45, 20, 21, 8, 60, 33, 20, 19, 50]


def pack(csv, out, *options):
    """The exit status of packing a list."""
    return main([str(csv), "--data_path", str(csv.parent), "--out", str(out), "--workers", "2", *map(str, options)])


def verify(folder):
    """The exit status of verifying a pack."""
    return main(["--verify", str(folder)])
