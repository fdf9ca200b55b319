"""The key-value cache: regions, slots, store, phases and the engine that drives a policy through them."""

from tetherflow.cache.attention import Attention, attention_for
from tetherflow.cache.engine import CacheEngine, Phase
from tetherflow.cache.interfaces import CacheShape, Policy, Positions, Rotary
from tetherflow.cache.layout import Layout
from tetherflow.cache.stage_data import Candidates, Destination, Draft, Eviction, Slots
from tetherflow.cache.statistics import Statistics

__all__ = [
    "Attention",
    "CacheEngine",
    "CacheShape",
    "Candidates",
    "Destination",
    "Draft",
    "Eviction",
    "Layout",
    "Phase",
    "Policy",
    "Positions",
    "Rotary",
    "Slots",
    "Statistics",
    "attention_for",
]
