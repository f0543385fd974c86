"""Serve the page of a run: on this machine alone, unless another host is asked for."""

from __future__ import annotations

import errno
import hmac
import io
import ipaddress
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mace_pl.errors import UserError, install
from mace_pl.studio.asked import check_settings

MOST_PORT = 2**16 - 1
LOOK = Path(__file__).parent / "page.css"
#: whatever a library of the page might want, the browser asks no other host
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "frame-ancestors 'none'",
    ]
)


def studio(
    run: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    share: bool = False,
    steps: int = 12,
    guidance: float = 5.0,
    output_dir: str | None = None,
    pretrained: str | None = None,
    layout: str | None = None,
) -> None:
    """Open a page in the browser on which the strengths of a run's concepts are moved and the images follow (extra
    studio).

    Args:
        run: output folder of ``fit`` or ``fuse``, or a library.
        host: address on which the page is served; another than this machine's own asks for the token.
        port: on which it is served; 0 for any that is free.
        token: asked for before the page is shown; made up and printed where the page is not for this machine alone.
        share: make a public link through a server of Gradio.
        steps: denoising steps at first.
        guidance: classifier-free guidance scale at first.
        output_dir: where exports are written; default the run's folder with ``-studio`` behind it.
        pretrained: where the run's base model is now; where the run found it when None.
        layout: where the layout of a base in one file is now; where the run found it when None.

    Raises:
        UserError: a setting out of its range, gradio is not installed, no run there, another base model, a port that is
            taken, or no public link where one is asked for.
    """
    check(host, port, steps, guidance)
    if find_spec("gradio") is None:
        raise UserError(f"studio: the package gradio is not installed. {install('studio')}")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    images = TemporaryDirectory(prefix="mace-pl-studio-")  # of this user alone, removed at the end
    os.environ.setdefault("GRADIO_TEMP_DIR", images.name)
    from mace_pl.studio.image_files import ImageFiles
    from mace_pl.studio.page import page_of
    from mace_pl.studio.session import Studio

    secret = token or (secrets.token_urlsafe(16) if share or not is_local(host) else None)
    made = Path(images.name) / "made"
    made.mkdir()
    page = page_of(Studio.open(run, output_dir, pretrained, layout), ImageFiles(made), steps, guidance)
    page.queue(default_concurrency_limit=None)
    asks = f", which asks for the token {secret}" if secret else ""
    if share:
        link = public_link(page, host, port, {**shared(), **asking(secret)})
        print(f"The page: {link}{asks}", flush=True)
        page.block_thread()
        return
    with listening(host, port) as found:
        server, number = server_of(page, found, secret), found.getsockname()[1]
        print(f"The page: http://{f'[{host}]' if ':' in host else host}:{number}/{asks}", flush=True)
        server.run(sockets=[found])  # until Ctrl+C


def check(host: str, port: int, steps: int, guidance: float) -> None:
    """Refuse what cannot be served, before anything is loaded.

    Raises:
        UserError: an empty host, a port that is none, or steps or guidance that the page does not have.
    """
    if not host.strip():
        raise UserError("host= is empty. Leave it out for this machine alone, or give 0.0.0.0 for all addresses.")
    if not 0 <= port <= MOST_PORT:
        raise UserError(f"port={port} must be between 1 and {MOST_PORT}, or 0 for any that is free.")
    check_settings(steps, guidance)


def public_link(page: Any, host: str, port: int, settings: Mapping[str, Any]) -> str:
    """Let Gradio serve the page and make a public link to it; returns the link.

    Args:
        page: the blocks of Gradio.
        host: as it was asked for.
        port: as it was asked for; 0 for any that is free.
        settings: of Gradio.

    Raises:
        UserError: nothing can be served there, or Gradio's server makes no link.
    """
    with listening(host, port):  # refused in our words
        pass
    told = io.StringIO()
    with redirect_stdout(told):
        _, _, public = page.launch(server_name=host, server_port=port or None, share=True, **settings)
    if public is None:
        page.close(verbose=False)
        said = " ".join(told.getvalue().split(". ")[0].split())
        raise UserError(f"share=true: no public link was made ({said}). Leave --share out, or try again later.")
    return str(public)


def server_of(page: Any, found: socket.socket, secret: str | None) -> Any:
    """What answers on a socket, made before the address is shown: a Ctrl+C while Gradio's loops close may be lost.

    Args:
        page: the blocks of Gradio.
        found: what listens.
        secret: the token; None for none.
    """
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Headers)
    host, port = found.getsockname()[:2]
    place = {"server_name": host, "server_port": port}
    gr.mount_gradio_app(app, page, "/", **place, **look(), **asking(secret))
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))


def look() -> dict[str, Any]:
    """How Gradio shows the page: fonts of the system alone, and nothing of its own beside the page."""
    import gradio as gr

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    alone = {"footer_links": [], "run_history": False, "ssr_mode": False, "enable_monitoring": False}
    # nothing is uploaded
    return {"theme": gr.themes.Default(**fonts), "css_paths": LOOK, "max_file_size": "1kb", **alone}


def shared() -> dict[str, Any]:
    """The same where Gradio itself serves, which its public links need."""
    from starlette.middleware import Middleware

    return {**look(), "app_kwargs": {"middleware": [Middleware(Headers)]}, "prevent_thread_lock": True, "quiet": True}


def asking(secret: str | None) -> dict[str, Any]:
    """What Gradio asks for before it shows the page."""
    if secret is None:
        return {}

    def allowed(_name: str, given: str) -> bool:
        return hmac.compare_digest(given.encode(), secret.encode())

    told = "Give any name, and as the password the token that the command has printed."
    return {"auth": allowed, "auth_message": told}


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens.

    Raises:
        UserError: the port is taken, or the host is none of this machine.
    """
    try:
        socket.getaddrinfo(host, port)
        found = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (socket.gaierror, UnicodeError) as error:  # the second of a part that is too long
        raise UserError(f"host={host}: no address is known by that name ({error}). Choose another --host.") from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"host={host} is no address of this machine ({error}). Choose another --host.") from error
        raise UserError(f"port={port}: nothing can be served on {host} ({error}). Choose another --port.") from error
    with found:
        yield found


class Headers:
    """Adds :data:`POLICY` to each answer.

    Args:
        app: what answers.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI has it."""

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
                message = {**message, "headers": [*headers, (b"referrer-policy", b"no-referrer")]}
            await send(message)

        await self.app(scope, receive, sent)


def is_local(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
