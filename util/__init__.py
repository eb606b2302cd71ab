"""Command-line helpers around m2d."""
