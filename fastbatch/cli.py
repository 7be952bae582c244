"""The command line: ``fastbatch info``, ``demo``, ``train``, ``predict`` and ``bench``."""

from __future__ import annotations

import argparse
import os
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
    from .bench import bench, bench_gpu

    if arguments.gpu:
        bench_gpu(arguments.names, json_path=arguments.json)
        return
    bench(
        arguments.names,
        quick=arguments.quick,
        heavy=arguments.all,
        peers=arguments.peers,
        json_path=arguments.json or "fastbatch_bench.json",
        plot_path=None if arguments.no_plot else arguments.plot,
    )


def _train(arguments: argparse.Namespace) -> None:
    from .tabular import train_table

    names = ("out", "task", "drop", "hidden", "epochs", "batch_size", "lr", "validation", "dtype", "seed")
    train_table(arguments.table, arguments.target, **{name: getattr(arguments, name) for name in names})


def _predict(arguments: argparse.Namespace) -> None:
    from .tabular import predict_table

    predict_table(arguments.model, arguments.table, out=arguments.out, probabilities=arguments.probabilities)


def _widths(text: str) -> list[int]:
    try:
        return [int(width) for width in text.split(",") if width]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected widths such as 64,64, got {text!r}") from None


def _batch_size(text: str) -> int | str:
    if text == "auto":
        raise argparse.ArgumentTypeError("expected a number of rows or full; auto is not built yet")
    try:
        return text if text == "full" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number of rows or full, got {text!r}") from None


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
    fit = commands.add_parser("train", help="train on a CSV or Parquet file and save the model")
    fit.add_argument("table", help="a file of columns, named .csv or .parquet")
    fit.add_argument("--target", required=True, help="the column to predict")
    tasks = ("auto", "classification", "regression")
    fit.add_argument("--task", default="auto", choices=tasks, help="default: what the target's values look like")
    fit.add_argument(
        "--drop", type=lambda text: text.split(","), default=[], metavar="A,B", help="columns to leave out"
    )
    fit.add_argument("--hidden", type=_widths, default=[64, 64], metavar="N,M", help="widths (default: 64,64)")
    fit.add_argument("--epochs", type=int, default=100, help="at most, passes over the data (default: %(default)s)")
    fit.add_argument("--batch-size", type=_batch_size, default=32, help="rows, or full (default: %(default)s)")
    fit.add_argument("--lr", type=float, default=1e-3, help="of Adam (default: %(default)s)")
    fit.add_argument("--validation", type=float, default=0.2, help="share of rows held out (default: %(default)s)")
    fit.add_argument("--dtype", default="float32", help="or float64 (default: %(default)s)")
    fit.add_argument("--seed", type=int, default=0, help="of the split, the weights and the shuffles (default: 0)")
    fit.add_argument("--out", default="model.safetensors", help="where the model goes (default: %(default)s)")
    fit.set_defaults(run=_train)
    say = commands.add_parser("predict", help="predictions of a model of `fastbatch train`, as CSV")
    say.add_argument("model", help="what `fastbatch train` saved")
    say.add_argument("table", help="a file with the same columns")
    say.add_argument("--probabilities", action="store_true", help="of every class, instead of the likeliest class")
    say.add_argument("--out", help="where they go (default: the standard output)")
    say.set_defaults(run=_predict)
    race = commands.add_parser("bench", help="time fastbatch, NumPy and every installed peer on this machine")
    race.add_argument("names", nargs="*", help="workloads whose name holds one of these (default: all but the heavy)")
    race.add_argument("--quick", action="store_true", help="four workloads, fewer steps: under two minutes")
    race.add_argument("--all", action="store_true", help="the heavy workloads too")
    race.add_argument("--peers", type=lambda text: text.split(","), help="such as numpy,torch,jax-scan (default: all)")
    race.add_argument("--gpu", action="store_true", help="on the GPU: conformance, then the peers there")
    race.add_argument("--json", help="where the results go (default: fastbatch_bench.json; with --gpu by the device)")
    race.add_argument("--plot", default="fastbatch_bench.png", help="where the picture goes (default: %(default)s)")
    race.add_argument("--no-plot", action="store_true", help="no picture, no matplotlib")
    race.set_defaults(run=_bench)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status. Errors that fastbatch raises on purpose become one line on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except BrokenPipeError:  # whoever reads has enough, as `head` does; what is left must not be flushed into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (FastbatchError, OSError) as error:
        print(f"fastbatch: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fastbatch: interrupted", file=sys.stderr)
        return 130
    return 0
