"""The Llama family (Touvron et al., 2023) and other models with the same mathematics."""
