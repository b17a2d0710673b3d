"""Synthesis of degradations that no operator describes: noise laws, weather, light, cameras."""
