"""Llama (Touvron et al., 2023), and models of the same mathematics."""
