"""The command line: `python -m ebm_ppl verify`, `python -m ebm_ppl diagnose draws.nc`."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0 if all is well, 1 if something is not, 2 if the command makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m ebm_ppl", description="Energy-based models in JAX.")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    for add_command in COMMANDS:
        add_command(commands)
    options = parser.parse_args(arguments)
    return options.run(options)


def add_verify(commands: Any) -> None:
    """`verify`: check the package on this machine."""
    parser = commands.add_parser(
        "verify",
        help="compare every objective, kernel and normaliser with closed forms, on this machine",
        description="Compare every objective, kernel and normaliser with closed forms and quadrature, on this machine, "
        "its default device and the chosen dtype. Exit status 1 if any comparison fails.",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only what has NAME in its name")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.set_defaults(run=_verify)


def add_diagnose(commands: Any) -> None:
    """`diagnose`: judge stored draws."""
    parser = commands.add_parser(
        "diagnose",
        help="judge the draws in a NetCDF file",
        description="Print the report of ebm.diagnose on the draws in a NetCDF-4 file. Exit status 0: no problem; "
        "1: the draws cannot be trusted; 2: there is nothing to judge.",
    )
    parser.add_argument("file", help="what save_datatree, or another library, wrote")
    parser.add_argument("--group", default="posterior", help="the group to judge (default: posterior)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a report")
    parser.add_argument(
        "--unverified",
        action="store_true",
        help="read a file without the checksum of save_datatree; only if you trust who wrote it",
    )
    parser.set_defaults(run=_diagnose)


COMMANDS = (add_verify, add_diagnose)


def _verify(options: argparse.Namespace) -> int:
    # Imported here: `--help` and the other commands need not wait for JAX.
    from ebm_ppl._verify._run import verify

    try:
        result = verify(options.only, dtype=options.dtype, write=None if options.json else _write)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    _write(result.to_json() if options.json else result.summary())
    return 0 if result.ok else 1


def _diagnose(options: argparse.Namespace) -> int:
    from ebm_ppl.diagnostics import diagnose, load_datatree
    from ebm_ppl.errors import CheckpointError

    try:
        report = diagnose(load_datatree(options.file, verify=not options.unverified), group=options.group)
    except (CheckpointError, ValueError) as error:
        hint = " On the command line: --unverified." if "verify=False" in str(error) else ""
        sys.stderr.write(f"{error}{hint}\n")
        return 2
    _write(report.to_json() if options.json else repr(report))
    return 0 if report.ok else 1


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
