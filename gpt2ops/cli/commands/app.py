"""`gpt2 app`: the web page, or the folder that runs it as a Hugging Face Space."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Open a web page that writes text with the models of this project: from the\n"
        "registry, models/best, or any folder of the project. It listens on this machine\n"
        "only and sends nothing anywhere. docs/app.md shows it."
    )
    parser.epilog = (
        "examples:\n"
        "  gpt2 app                                   all models of this project\n"
        "  gpt2 app --model my_model --model gpt2     these first in the list\n"
        "  gpt2 app --host 0.0.0.0 --auth me:secret   for other machines, behind a login\n"
        "  gpt2 app --export-space my-space           a folder for a Hugging Face Space"
    )
    parser.add_argument(
        "--model",
        action="append",
        default=None,
        metavar="MODEL",
        help="a directory, a released size (gpt2 ... gpt2-xl) or models:/NAME@ALIAS; may be given several times "
        "(default: models/best, then the registry)",
    )
    parser.add_argument(
        "--weights",
        choices=("fp32", "bf16", "int8"),
        default="fp32",
        help="how weights are kept: bf16 is smaller and faster, int8 (for a CPU) smallest (default: %(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="0: any free one (default: %(default)s)")
    parser.add_argument(
        "--auth",
        metavar="USER:PASSWORD",
        help="a login for the page, needed where other machines reach it; GPT2_APP_AUTH does not show in the list of "
        "processes",
    )
    parser.add_argument(
        "--export-space", metavar="DIR", help="instead write a folder that runs as a Hugging Face Space, and leave"
    )


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for a model, an address or a folder that will not do."""
    models = arguments.model or []
    if arguments.export_space is not None:
        from gpt2ops.app.space import export_space

        export_space(arguments.export_space, models, arguments.weights)
        return
    from gpt2ops.app.server import serve

    serve(models, arguments.weights, arguments.host, arguments.port, arguments.auth)
