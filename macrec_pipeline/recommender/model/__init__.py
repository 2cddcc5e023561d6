"""The model: vocabulary, history encoding and the T5 network."""
