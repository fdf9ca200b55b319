"""Work beside what follows it: on a CPU in order and at once; tests/gpu/test_graphs.py has it on a GPU."""

from __future__ import annotations

import torch

from tetherflow.cache.beside import Beside


def test_on_a_cpu_everything_happens_in_order() -> None:
    beside, seen = Beside(torch.device("cpu")), list[str]()
    with beside(torch.ones(1)):
        seen.append("beside")
    beside.later(lambda: seen.append("later"))
    seen.append("next")
    wait = beside.mark()
    wait()
    beside.launch()
    beside.join()
    beside.forget()
    assert seen == ["beside", "later", "next"]
