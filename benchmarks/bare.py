"""An app that does nothing, under uvicorn: what a route costs on this machine at the least.

python -m benchmarks.bare --port 8003
"""

import argparse

import uvicorn
from starlette.types import Receive, Scope, Send


async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001, ASGI's form
    """200 to whatever comes."""
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
