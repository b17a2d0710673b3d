"""Figures about explanations and predictions, as functions of arrays: they know no model."""
