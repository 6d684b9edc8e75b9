"""What a sample is asked to be: class labels, text, either, both or none, each with its null condition."""

from ldm.conditioning.condition import Condition
from ldm.conditioning.conditioner import Conditioner, ConditioningConfig, class_index

__all__ = ["Condition", "Conditioner", "ConditioningConfig", "class_index"]
