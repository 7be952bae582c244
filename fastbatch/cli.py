"""The command line: ``fastbatch info``, ``fastbatch demo`` and ``fastbatch bench``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ._version import __version__
from .errors import FastbatchError
from .info import info

__all__ = ["main"]


def _demo(arguments: argparse.Namespace) -> None:
    from .demo import demo

    demo(arguments.out, epochs=arguments.epochs, seed=arguments.seed)


def _bench(arguments: argparse.Namespace) -> None:
    from .bench import bench

    bench(
        arguments.names,
        quick=arguments.quick,
        heavy=arguments.all,
        peers=arguments.peers,
        json_path=arguments.json,
        plot_path=None if arguments.no_plot else arguments.plot,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastbatch", description="Dense networks on mini-batches, fast.")
    parser.add_argument("--version", action="version", version=f"fastbatch {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    page = commands.add_parser("info", help="version, CPU, targets, backends, threads: what is chosen and why")
    page.set_defaults(run=lambda arguments: print(info()))
    show = commands.add_parser("demo", help="train on scikit-learn's handwritten digits and plot the learning curve")
    show.add_argument("--out", default="fastbatch_demo.png", help="where to write the picture (default: %(default)s)")
    show.add_argument("--epochs", type=int, default=60, help="passes over the data (default: %(default)s)")
    show.add_argument("--seed", type=int, default=0, help="of the split, the weights and the shuffles (default: 0)")
    show.set_defaults(run=_demo)
    race = commands.add_parser("bench", help="time fastbatch, NumPy and every installed peer on this machine")
    race.add_argument("names", nargs="*", help="workloads whose name holds one of these (default: all but the heavy)")
    race.add_argument("--quick", action="store_true", help="four workloads, fewer steps: under two minutes")
    race.add_argument("--all", action="store_true", help="the heavy workloads too")
    race.add_argument("--peers", type=lambda text: text.split(","), help="such as numpy,torch,jax-scan (default: all)")
    race.add_argument("--json", default="fastbatch_bench.json", help="where the results go (default: %(default)s)")
    race.add_argument("--plot", default="fastbatch_bench.png", help="where the picture goes (default: %(default)s)")
    race.add_argument("--no-plot", action="store_true", help="no picture, no matplotlib")
    race.set_defaults(run=_bench)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status. Errors that fastbatch raises on purpose become one line on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (FastbatchError, OSError) as error:
        print(f"fastbatch: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fastbatch: interrupted", file=sys.stderr)
        return 130
    return 0
