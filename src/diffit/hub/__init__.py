"""Hub-style folders: a model with its licence, card and measurements, as it is passed on."""

from diffit.hub.card import Card
from diffit.hub.find import find
from diffit.hub.folder import is_hub_folder, load_folder, read_folder, verify_folder, write_folder
from diffit.hub.pass_on import export, pull, push

__all__ = ["Card", "export", "find", "is_hub_folder", "load_folder", "pull", "push",
           "read_folder", "verify_folder", "write_folder"]  # fmt: skip
