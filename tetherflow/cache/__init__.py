"""The key-value cache: regions, slots, store, phases and the engine that drives a policy through them."""

from tetherflow.cache.answers import (
    Destination,
    Eviction,
    Placement,
    Ranks,
    Revision,
    Segment,
    Selection,
    SideShape,
    SideStore,
    When,
)
from tetherflow.cache.attention import Attention, attention_for
from tetherflow.cache.engine import CacheEngine
from tetherflow.cache.events import Event
from tetherflow.cache.interfaces import CacheShape, Policy, Positions, Rotary, Unit, Unpacks, Uses, Writes
from tetherflow.cache.layout import Layout, Regions
from tetherflow.cache.newcomers import Newcomers
from tetherflow.cache.passes import Phase
from tetherflow.cache.slots import Slots
from tetherflow.cache.stage_data import Bank, Candidates, Draft, Units
from tetherflow.cache.statistics import Statistics

__all__ = [
    "Attention",
    "Bank",
    "CacheEngine",
    "CacheShape",
    "Candidates",
    "Destination",
    "Draft",
    "Event",
    "Eviction",
    "Layout",
    "Newcomers",
    "Phase",
    "Placement",
    "Policy",
    "Positions",
    "Ranks",
    "Regions",
    "Revision",
    "Rotary",
    "Segment",
    "Selection",
    "SideShape",
    "SideStore",
    "Slots",
    "Statistics",
    "Unit",
    "Units",
    "Unpacks",
    "Uses",
    "When",
    "Writes",
    "attention_for",
]
