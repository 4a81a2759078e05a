"""What estimators, methods and modules are called, and the colours, dashes and symbols that tell them apart."""

from __future__ import annotations

ESTIMATORS = {"uniform": "Uniform", "fisher": "Fisher", "pca": "PCA-aware", "manual": "By hand"}
LINE_OF = {"uniform": "baseline", "fisher": "other", "pca": "intraslice", "manual": "dense"}
METHODS = {
    "intraslice": "IntraSlice",
    "intraslice+": "IntraSlice+",
    "crossmodule": "Cross-module",
    "magnitude": "Magnitude",
    "wanda": "Wanda",
    "flap": "FLAP",
}


# Colour and dash tell estimators and kinds of method apart, symbols tell the methods that share these.
SYMBOLS = {"intraslice+": "diamond", "crossmodule": "square", "wanda": "triangle-up", "flap": "x"}
