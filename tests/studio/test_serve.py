"""What ``studio`` refuses before a page is served."""

from __future__ import annotations

from typing import Any

import pytest

from mace_pl.errors import UserError
from mace_pl.studio.serve import check, is_local, listening, public_link


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("port", 99999, "port=99999 must be between 1 and 65535"),
        ("port", -1, "port=-1 must be"),
        ("steps", 0, "steps=0 must be between 1 and 100"),
        ("steps", 1000, "steps=1000"),
        ("guidance", -3, "guidance=-3 must be between 1 and 15"),
        ("guidance", float("nan"), "guidance=nan"),
        ("host", "", "host= is empty"),
    ],
)
def test_what_cannot_be_served_is_refused_first(option: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(**{"host": "127.0.0.1", "port": 0, "steps": 12, "guidance": 5.0, option: value})


@pytest.mark.parametrize(
    ("host", "message"),
    [("no.such.host.invalid", "host=no"), ("192.0.2.1", "host=192.0.2.1 is no"), ("x" * 64, "host=xx")],
)
def test_a_host_that_is_none_is_named(host: str, message: str) -> None:
    with pytest.raises(UserError, match=message), listening(host, 0):
        pytest.fail("nothing can be served there")


def test_a_port_that_is_taken_is_named_as_such() -> None:
    with listening("127.0.0.1", 0) as one:
        port = one.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port}: .*--port"), listening("127.0.0.1", port):
            pytest.fail("the port is taken")


class Unlinked:
    """Stands for the blocks of Gradio without a network, which print lines and serve without a link."""

    closed = False

    def launch(self, **_settings: Any) -> tuple[None, str, None]:
        print("\nCould not create share link. Missing file: /frpc. \n\nPlease check your internet connection.")
        return None, "http://127.0.0.1:1/", None

    def close(self, verbose: bool = True) -> None:
        self.closed = not verbose


def test_no_public_link_is_one_line_and_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    page = Unlinked()
    with pytest.raises(UserError, match=r"^share=true: .*Could not create share link.*--share.*$"):
        public_link(page, "127.0.0.1", 0, {})
    assert page.closed and capsys.readouterr().out == ""


def test_addresses_that_this_machine_alone_reaches() -> None:
    assert [is_local(host) for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost")] == [True] * 4
    assert [is_local(host) for host in ("0.0.0.0", "::", "192.168.1.2", "a.example")] == [False] * 4
