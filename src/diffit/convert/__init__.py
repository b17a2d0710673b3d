"""Published weights to models of this library, and back.

`from_file` makes a model of a file or folder, with a certificate; `from_reference` a network of a
state dict; `to_reference` goes the other way. Each published code is a module of this package,
listed in `FAMILIES`.
"""

from diffit.convert.converted import Converted, from_file
from diffit.convert.families import FAMILIES, detect
from diffit.convert.reference import from_reference, to_reference

__all__ = ["FAMILIES", "Converted", "detect", "from_file", "from_reference", "to_reference"]
