"""Hub-style folders: a model with its licence, card and measurements, as it is passed on."""

from diffit.hub.card import Card
from diffit.hub.folder import is_hub_folder, load_folder, read_folder, write_folder

__all__ = ["Card", "is_hub_folder", "load_folder", "read_folder", "write_folder"]
