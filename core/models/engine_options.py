"""Options of an engine that a model file names and the engine reads.

Imports no other module of this project, so that the engine may import it.
"""

from __future__ import annotations

from enum import StrEnum


class BackendKind(StrEnum):
    """The program that generates: llama.cpp, transformers, an OpenAI-compatible server, or a fake that needs no model."""

    LLAMA = "llama"
    TRANSFORMERS = "transformers"
    OPENAI = "openai"
    FAKE = "fake"


class Switch(StrEnum):
    """A feature that is on, off, or on where llama.cpp supports it (AUTO)."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class SplitMode(StrEnum):
    """Division of a model among devices: none, whole layers, or the rows of each matrix."""

    NONE = "none"
    LAYER = "layer"
    ROW = "row"


class KvLayout(StrEnum):
    """One memory that all sequences share, or a stream of its own for each."""

    AUTO = "auto"
    UNIFIED = "unified"
    SPLIT = "split"


class KvType(StrEnum):
    """Number format of keys or values, by the names of llama.cpp."""

    F32 = "f32"
    F16 = "f16"
    Q8_0 = "q8_0"
    Q5_1 = "q5_1"
    Q5_0 = "q5_0"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"


class Pooling(StrEnum):
    """The way to combine token vectors into one embedding; AUTO is the way of the model, else the mean."""

    AUTO = "auto"
    MEAN = "mean"
    CLS = "cls"
    LAST = "last"
