"""Strata, an OpenAI-compatible gateway. The folders are the stages of a request, in the order it passes them."""

__version__ = "0.1.0"
