"""The contrastive trainer: towers, loss, loop, checkpoints, embedding, evaluation."""
