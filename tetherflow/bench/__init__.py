"""What policies cost: chunk times, the device's floor, parts, memory, and the way from prompt to file."""

from tetherflow.bench.against import Implementation, Workload, load_implementation
from tetherflow.bench.report import Details, measure_details
from tetherflow.bench.roofline import Floor, Roofline
from tetherflow.bench.timing import LEAST, STEADY, Timing, compare
from tetherflow.bench.whole import Whole

__all__ = [
    "LEAST",
    "STEADY",
    "Details",
    "Floor",
    "Implementation",
    "Roofline",
    "Timing",
    "Whole",
    "Workload",
    "compare",
    "load_implementation",
    "measure_details",
]
