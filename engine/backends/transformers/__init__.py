"""The transformers backend: a folder in the format of Hugging Face. No other package of the product imports torch."""
