"""The conformance suite: points the rules at a policy, as a pytest test."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tetherflow.testing.rules import RULES
from tetherflow.testing.subject import Policy, Subject
from tetherflow.testing.trial import Rule


def conformance(policy: Policy | Mapping[str, Policy], **options: Any) -> Callable[..., None]:
    """Make a test that holds a policy to every rule of `RULES`.

    Bind it to a name that pytest collects:

        from tetherflow.testing import conformance
        from my_package import MyScorer

        test_my_scorer = conformance(MyScorer)

    Args:
        policy: a stage plugin, which stages of the kit complete to a policy; a function that makes a whole
            `Pipeline`; a recipe, by name or path; or several of them by name, to be tested one by one.
        options: what else `Subject.of` takes: `regions`, `positions`, `units`, `models`, `chunk`,
            `switches`, `examples`.

    Returns:
        A test, parametrised over the rules (and the names).
    """
    policies = policy if isinstance(policy, Mapping) else {"": policy}

    @functools.cache
    def subject(name: str) -> Subject:
        return Subject.of(policies[name], **options)

    by_rule = pytest.mark.parametrize("rule", RULES, ids=[rule.__name__ for rule in RULES])
    if not isinstance(policy, Mapping):

        @by_rule
        def test_conforms(rule: Rule) -> None:
            rule(subject(""))

        return test_conforms

    @by_rule
    @pytest.mark.parametrize("name", policies)
    def test_conform(name: str, rule: Rule) -> None:
        rule(subject(name))

    return test_conform
