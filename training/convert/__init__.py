"""Conversion: a model that another library trained, as an artefact; and an artefact for diffusers.

    source files  ->  Found (network, process, space, tensors)  ->  models/NAME

Nothing is dropped: every tensor of a source is used, or the conversion is refused with its name.
No file is unpickled but by `torch.load(weights_only=True)`, and no code is run that comes in one.
"""

from training.convert.diffusers import write_diffusers
from training.convert.found import ConvertError, Found
from training.convert.write import Options, convert, read

__all__ = ["ConvertError", "Found", "Options", "convert", "read", "write_diffusers"]
