"""``llmmem models``."""

from __future__ import annotations

from dataclasses import asdict

import click

from llmmem.cli.json_output import print_json
from llmmem.cli.options import json_option

__all__ = ["models"]


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the models whose configs come with llmmem."""
    from llmmem.catalogue.models import models as entries

    if as_json:
        print_json([asdict(entry) | {"path": str(entry.path)} for entry in entries()])
    else:
        from llmmem.cli.show import show_models

        show_models(entries())
