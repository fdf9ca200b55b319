"""Weights that others publish: which files they are, where they lie, and how to fetch and check them."""

from tetherflow.weights.folder import sha256_of, weights_folder
from tetherflow.weights.published import PublishedFile

__all__ = ["PublishedFile", "sha256_of", "weights_folder"]
