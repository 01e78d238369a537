"""JSON on standard output."""

from __future__ import annotations

import json

import click

__all__ = ["print_json"]


def print_json(document: object) -> None:
    """Print one document; NaN and infinity, which JSON lacks, are errors."""
    click.echo(json.dumps(document, indent=2, allow_nan=False))
