"""When an attribute of a rebuilt model counts as the recorded one."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_keras_subclass.artifacts import structure
from mlflow_keras_subclass.model_tree import Attribute, ModelTree


def own(**config: Any) -> dict[str, Any]:
    return {"$keras": {"class_name": "GlorotUniform", "config": config}}


@pytest.mark.parametrize(
    ("now", "recorded", "differs"),
    [
        (own(seed=None), own(seed=None, input_axes=None), False),  # logged with a later release of Keras
        (own(seed=None, epsilon=1e-7), own(seed=None), False),  # with an earlier one
        (own(seed=None), own(seed=None, scale=2.0), True),  # a setting that this release does not know
        (own(axis=(-1,)), own(axis=[-1]), False),
        (own(seed=1), own(seed=2), True),
        ({"name": "dense_1", "$id": 3}, {"name": "dense_7"}, False),
        ({"title": "dense_1"}, {"title": "dense_7"}, True),
        ({"a": 1}, {"a": 1, "b": None}, True),
        ({"a": 1, "b": None}, {"a": 1}, True),
        ([1], [1, 2], True),
        ({"$float": "nan"}, {"$float": "nan"}, False),
    ],
)
def test_differing_attribute(now: Any, recorded: Any, differs: bool) -> None:
    """Those of Keras' own may have another release's keys; the user's must be what they were."""
    place = Attribute(owner=object(), key="item", value=now, is_item=False)
    tree = ModelTree(attributes={"item": place})
    found = structure._differing({"item": recorded}, tree, lambda _, value: value, lambda value: value)
    assert found == (["item"] if differs else [])
