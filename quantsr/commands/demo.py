"""`quantsr demo`: a page on this machine to drop pictures on."""

from __future__ import annotations

import argparse
import signal
import threading
import webbrowser

from quantsr import terminal
from quantsr.commands.upscale import DEFAULT_MODEL
from quantsr.demo.networks import Networks
from quantsr.demo.server import DemoServer
from quantsr.deploy.engines.names import ENGINES
from quantsr.trained_files.names import shipped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `quantsr demo`."""
    parser.add_argument(
        "--network",
        nargs="+",
        metavar="NAME_OR_FILE",
        help="packed networks that the page offers, the first chosen (default: all that come with quantsr)",
    )
    parser.add_argument(
        "--engine",
        default="auto",
        choices=ENGINES,
        help="engine that runs the networks (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument(
        "--port", type=_port, default=0, metavar="N", help="port of the page (default: a free one)"
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the page's address")


def run(args: argparse.Namespace) -> int:
    """Serves the page to this machine until SIGINT or SIGTERM comes; returns 0.

    Raises:
        InputError: a bad network, engine or number of threads, or a port that is taken.
    """
    names = args.network or sorted(shipped(), key=lambda name: (name != DEFAULT_MODEL, name))
    networks = Networks(names, engine=args.engine, threads=args.threads)
    with DemoServer(networks, args.port) as server:
        terminal.show(f"{server.address} shows the page, to this machine only; Ctrl-C ends it")
        if not args.no_browser:
            # not waited for: a browser in the terminal runs until it is left
            threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()
        # set here as well: processes that a shell starts in the background ignore SIGINT
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            terminal.show("ended")
    return 0


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be 0 to 65535, got {text}")
    return int(text)
