"""Serves the page of a project until it is interrupted."""

import os
import socket
import threading
from collections.abc import Sequence

from gpt2core.decoding.packed.linear import Weights
from gpt2core.errors import UserError
from gpt2ops.app.launch import launch, prepare_gradio
from gpt2ops.process.local_requests import LocalRequests, is_loopback

EXAMPLES = ("To be, or not to be", "Once upon a time", "The")
AUTH_VARIABLE = "GPT2_APP_AUTH"


def serve(models: Sequence[str], weights: Weights, host: str, port: int, auth: str | None) -> None:
    """Raises UserError, before anything is served, for a model, address or login that will not do."""
    login = read_login(host, auth or os.environ.get(AUTH_VARIABLE))
    port = check_port(host, port)
    prepare_gradio()

    from starlette.middleware import Middleware

    from gpt2ops.app.page.page import build_page
    from gpt2ops.app.page.training_text import TrainingText
    from gpt2ops.app.serving.limits import Limits
    from gpt2ops.app.serving.models import ModelCache
    from gpt2ops.app.serving.project_models import ProjectModels
    from gpt2ops.app.serving.service import GenerationService

    limits = Limits()
    cache = ModelCache(ProjectModels(models), weights, limits.models_in_memory)
    for name in models:
        cache.load(name)
    cache.source.choices()  # the first visitor would wait for the registry, before a page without a model
    service = GenerationService(cache, limits, TrainingText.of_project(models))
    launch(
        build_page(service, project_examples()),
        server_name=host,
        server_port=port,
        auth=login,
        app_kwargs={} if login else {"middleware": [Middleware(LocalRequests)]},
        prevent_thread_lock=True,
    )
    shown = f"[{host}]" if ":" in host else host
    print(f"The page is at http://{shown}:{port} (Ctrl-C ends it).", flush=True)
    if not is_loopback(host):
        print(
            f"Warning: whoever reaches {shown}:{port} and knows the login can use the models of this project; the "
            "connection is not encrypted.",
            flush=True,
        )
    try:
        threading.Event().wait()
    finally:
        service.close()


def read_login(host: str, auth: str | None) -> tuple[str, str] | None:
    """`user:password` as two. Raises UserError where it is none, or is needed and missing."""
    if auth is None:
        if not is_loopback(host):
            raise UserError(
                f"--host {host} can be reached from other machines, and needs a login: give --auth user:password, or "
                f"set {AUTH_VARIABLE}; or stay on this machine (--host 127.0.0.1)."
            )
        return None
    user, colon, password = auth.partition(":")
    if not (user and colon and password):
        raise UserError("--auth must be user:password, both not empty.")
    return user, password


def check_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises UserError where it is taken or the address is not this machine's."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port ({port}) must be from 0 (any that is free) to 65535.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As the server will: a port that was used a moment ago is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except PermissionError:
        raise UserError(f"--port {port} needs an administrator's rights; choose one above 1023.") from None
    except socket.gaierror:
        raise UserError(f"--host {host} is no address; give one of this machine, such as 127.0.0.1.") from None
    except OSError as error:
        if "assign" in str(error):
            raise UserError(f"--host {host} is no address of this machine; try 127.0.0.1.") from None
        raise UserError(
            f"port {port} on {host} is in use; end the program that has it, or choose another: --port {port + 1}."
        ) from None


def project_examples() -> Sequence[str]:
    """The prompts that the project's own samples are written to."""
    from gpt2ops.params.schema import load_params
    from gpt2ops.pipeline import paths
    from gpt2ops.pipeline.paths import project_root

    file = project_root() / paths.PARAMS
    prompts = load_params(file).sample.prompts if file.is_file() else []
    return [prompt for prompt in prompts if prompt.strip()] or EXAMPLES  # an empty one would be an empty button
