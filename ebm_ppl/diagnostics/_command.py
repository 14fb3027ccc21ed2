"""`python -m ebm_ppl diagnose file.nc`: the verdict on stored draws, for a terminal and for a script."""

import argparse
import sys

from ebm_ppl.diagnostics._diagnose import diagnose
from ebm_ppl.diagnostics._storage import load_datatree
from ebm_ppl.errors import CheckpointError

OK, NOT_OK, UNREADABLE = 0, 1, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `diagnose`."""
    parser.add_argument("file", help="a NetCDF-4 file that ebm.diagnostics.save_datatree, NumPyro, PyMC or Stan wrote")
    parser.add_argument("--group", default="posterior", help="the group to judge (default: posterior)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--unverified",
        action="store_true",
        help="read a file without the checksum of save_datatree (written by another program); only if you trust it",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 0 where the draws may be trusted, 1 where not, 2 where there is nothing to judge."""
    try:
        tree = load_datatree(arguments.file, verify=not arguments.unverified)
        report = diagnose(tree, group=arguments.group)
    except (CheckpointError, ValueError) as error:
        sys.stderr.write(f"{error}{_hint(error)}\n")
        return UNREADABLE
    sys.stdout.write((report.to_json() if arguments.json else repr(report)) + "\n")
    return OK if report.ok else NOT_OK


def _hint(error: Exception) -> str:
    return " On the command line: --unverified." if "verify=False" in str(error) else ""
