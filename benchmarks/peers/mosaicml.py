"""mosaicml-streaming without its image data sets: they need torchvision, which does not load beside the CPU's torch."""

import importlib.machinery
import sys
import types

# transformers asks whether there is a torchvision, and must hear that there is none.
import transformers.feature_extraction_utils
import transformers.models.auto.tokenization_auto
import transformers.tokenization_utils_base  # noqa: F401


def _absent(name: str, **members: object) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(members)
    sys.modules[name] = module


_absent("torchvision")
_absent("torchvision.datasets", VisionDataset=object)
_absent("torchvision.transforms")
_absent("torchvision.transforms.functional", to_tensor=None)

import streaming  # noqa: E402, F401
