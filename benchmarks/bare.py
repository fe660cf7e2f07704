"""An empty app under uvicorn, which measures the least that a route costs on this machine.

python -m benchmarks.bare --port 8003
"""

import argparse

import uvicorn
from starlette.types import Receive, Scope, Send


async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001, ASGI's form
    """Answer every request with 200."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args()
    uvicorn.run(app, port=asked.port, lifespan="off", log_level="warning")


if __name__ == "__main__":
    main()
