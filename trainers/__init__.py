"""What is computed: corpus, tokens, pretraining, fine-tuning, metrics. Knows nothing of Ray."""
