"""The Causal-Forcing backbone (arXiv 2602.02214)."""

from __future__ import annotations

from tetherflow_backbones.published import PublishedWan


class CausalForcing(PublishedWan):
    """Causal Forcing, chunk by chunk: weights that Rolling Sink's code (arXiv 2602.07775) also offers."""

    checkpoint = "causal-forcing"
    transformer_file = "zhuhz22/Causal-Forcing/chunkwise/causal_forcing.pt"
