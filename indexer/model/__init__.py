"""From a checkpoint and uint8 clips to logits and embeddings; needs no Ray, av or tables."""
