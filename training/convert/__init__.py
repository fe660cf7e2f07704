"""Convert models trained by other libraries to artefacts, and artefacts to diffusers pipelines.

    source files  ->  Found (network, process, space, tensors)  ->  models/NAME

Every tensor of a source is used, or the conversion is refused and names it. Pickled files are read
only by `torch.load(weights_only=True)`, so no code in them runs.
"""

from training.convert.diffusers import write_diffusers
from training.convert.found import ConvertError, Found
from training.convert.write import Options, convert, read

__all__ = ["ConvertError", "Found", "Options", "convert", "read", "write_diffusers"]
