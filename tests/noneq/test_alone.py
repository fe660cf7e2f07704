"""The client is imported and used with httpx, numpy and safetensors alone."""

import subprocess
import sys

ALONE = """
import sys

ABSENT = {"torch", "pydantic", "fastapi", "starlette", "uvicorn", "orjson", "PIL", "tqdm", "rich"}
ABSENT |= {"service", "diffusion", "training", "matplotlib"}

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in ABSENT
        return None if absent else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)

import numpy as np
import noneq
from noneq import codec, images
from noneq.cli.main import main

assert noneq.Client and noneq.AsyncClient
tensors = {"samples": np.zeros((2, 1, 4, 4), np.float32)}
found = noneq.Samples(codec.Body({"model": "m", "seed": 1}, tensors))
found.save(sys.argv[1] + "/a.npy")
assert images.sheet(found.numpy()).shape == (8, 14, 3)
try:
    found.save(sys.argv[1] + "/a.png")
except noneq.MissingExtra as error:
    assert "pip install 'noneq[client]'" in str(error)
else:
    raise AssertionError("a picture without Pillow")
assert main(["serve"]) == 7
"""


def test_nothing_of_the_servers_is_needed(tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'noneq[serve]'" in done.stderr
