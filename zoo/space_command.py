"""What `zoo space` does: serve the page of `spaces/` on this machine."""

from __future__ import annotations

from zoo.errors import MissingExtraError


def serve(host: str, port: int) -> None:
    """Serve until interrupted; for a process that does nothing else.

    Raises
    ------
    MissingExtraError : Gradio or its parts are not installed.
    ZooError : the port is taken.
    """
    try:
        # Not `zoo_space.app`: this one is there or not without any of Gradio.
        import zoo_space  # noqa: F401
    except ImportError:
        raise MissingExtraError(
            'the page is not in this installation of score-zoo: pip install "score-zoo[space]"'
        ) from None
    from zoo_space.app import main

    main(host, port)
